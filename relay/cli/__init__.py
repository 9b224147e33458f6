"""The commands: they join the parts and decide nothing."""

from relay.cli import changes, entries, files
from relay.cli import run as serving
from relay.cli.app import main

__all__ = ["changes", "entries", "files", "main", "serving"]
