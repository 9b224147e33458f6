"""Settings: read from environment variables, all faults reported at once."""

from relay.settings.environment import Models
from relay.settings.model import Settings
from relay.settings.variables import Variable, variables

__all__ = ["Models", "Settings", "Variable", "variables"]
