"""The commands: they join the parts and decide nothing."""

from relay.cli import entries, files, serving
from relay.cli.app import main

__all__ = ["entries", "files", "main", "serving"]
