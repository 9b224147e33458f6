"""What `.ci/run` does before it checks anything."""

import json
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_a_check_installs_each_program_that_is_missing(tmp_path: Path) -> None:
    """Looked for by itself: that one of them is there says nothing of the others."""
    asked = tmp_path / "asked"
    stubs = {
        "apt-get": f'echo "$@" >> {asked}',
        "make": "true",
        "id": "echo 0",
        "chromium-headless-shell": "",
    }
    for name, line in stubs.items():
        stub = tmp_path / name
        stub.write_text(f"#!/bin/sh\n{line}\n")
        stub.chmod(0o755)
    (tmp_path / "dirname").symlink_to(shutil.which("dirname") or "")
    command = [shutil.which("bash") or "", str(ROOT / ".ci/run")]
    subprocess.run(command, env={"PATH": str(tmp_path)}, check=True)  # noqa: S603 (its own script)
    installed = asked.read_text().splitlines()[-1].split()

    assert "chromium-headless-shell" not in installed
    assert {"prometheus", "caddy", "socat", "stunnel4"} <= {*installed}


def test_the_lock_of_the_libraries_names_no_registry() -> None:
    """Each machine has its own. What comes from it is checked by the digest."""
    lock = json.loads((ROOT / "tests/clients/package-lock.json").read_text())
    packages = [package for name, package in lock["packages"].items() if name]

    assert packages
    assert all("resolved" not in package for package in packages)
    assert all(package["integrity"].startswith("sha512-") for package in packages)
