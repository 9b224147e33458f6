"""Adds the toys to relay: Python imports this module at its start where it is on the path."""

from pathlib import Path

import relay.destinations
import relay.sources

_HERE = Path(__file__).parent

relay.sources.__path__.append(str(_HERE / "sources"))
relay.destinations.__path__.append(str(_HERE / "destinations"))
