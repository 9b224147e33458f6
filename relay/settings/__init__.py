"""The settings, read from the environment and checked all at once."""

from relay.settings.model import Models, Settings, Variable, variables

__all__ = ["Models", "Settings", "Variable", "variables"]
