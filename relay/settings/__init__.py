"""Reads settings from environment variables, and reports all faults at once."""

from relay.settings.environment import Models
from relay.settings.model import Settings
from relay.settings.variables import Variable, variables

__all__ = ["Models", "Settings", "Variable", "variables"]
