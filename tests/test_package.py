import subprocess
import sys

import relay


def test_it_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "relay", "--version"]
    done = subprocess.run(command, capture_output=True, check=True, text=True)  # noqa: S603 (ours)

    assert done.stdout.strip() == f"relay, version {relay.__version__}"
