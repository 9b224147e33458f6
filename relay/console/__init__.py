"""The console: web pages on which an operator sees and replays events."""

from relay.console.app import Console
from relay.console.overview import CALLS_PATH, Endpoint
from relay.console.pages import HOME
from relay.console.sign_in import Links, print_link

__all__ = ["CALLS_PATH", "HOME", "Console", "Endpoint", "Links", "print_link"]
