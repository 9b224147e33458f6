"""`python -m relay`, or `python -P relay/__main__.py`: the same as the `relay` command.

Run by its path, it is this very relay that runs, wherever it is, with nothing imported from the
working directory.
"""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path


def _load_this_relay() -> None:
    """Import `relay` from here, and not from where else it may be found."""
    spec = spec_from_file_location("relay", Path(__file__).resolve().with_name("__init__.py"))
    assert spec  # noqa: S101 (it is a file of Python)
    assert spec.loader  # noqa: S101 (as above)
    sys.modules["relay"] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules["relay"])


if __name__ == "__main__":
    if not __package__:
        _load_this_relay()
    from relay.cli import main

    main(prog_name="relay")
