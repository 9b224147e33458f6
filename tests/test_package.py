import subprocess
import sys
from pathlib import Path

import pytest

import relay
from relay import sources
from relay.sources import source_classes

MODULES = sorted(Path(sources.__path__[0]).glob("[!_]*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_every_module_of_a_provider_is_found_by_its_name(path: Path) -> None:
    source = source_classes()[path.stem]

    assert source.__module__ == f"relay.sources.{path.stem}"


def test_it_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "relay", "--version"]
    told = subprocess.run(command, capture_output=True, check=True, text=True)  # noqa: S603 (ours)

    assert told.stdout.strip() == f"relay, version {relay.__version__}"
