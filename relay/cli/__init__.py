"""The commands: each reads its options, connects the parts that do the work, and prints results."""

from relay.cli import changes, check, copies, demo, entries, jsonlines, reference, run
from relay.cli.app import main

__all__ = ["changes", "check", "copies", "demo", "entries", "jsonlines", "main", "reference", "run"]
