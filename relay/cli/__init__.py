"""The commands: they join the parts and decide nothing."""

from relay.cli import changes, entries, files, serving
from relay.cli.app import main

__all__ = ["changes", "entries", "files", "main", "serving"]
