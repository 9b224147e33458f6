"""The commands: each connects the parts and decides nothing."""

from relay.cli import changes, check, copies, demo, entries, jsonlines, reference, run
from relay.cli.app import main

__all__ = ["changes", "check", "copies", "demo", "entries", "jsonlines", "main", "reference", "run"]
