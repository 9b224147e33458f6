"""Runs the `relay` command, as `python -m relay` or as `python -P relay/__main__.py`.

Run by its path, it imports the `relay` package that it lies in, and nothing from the working
directory.
"""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path


def _load_this_relay() -> None:
    """Import the `relay` package that this file lies in, even if the path leads to another."""
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
