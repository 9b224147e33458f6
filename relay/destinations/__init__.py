"""Destinations: where relay sends events.

A destination is a module in this folder that names its class `DESTINATION`.
"""

from importlib import import_module
from pkgutil import iter_modules

from relay.destinations.batches import batches
from relay.destinations.protocol import Destination, Limits, Message, Rendering

__all__ = ["Destination", "Limits", "Message", "Rendering", "batches", "destination_classes"]


def destination_classes() -> dict[str, type[Destination]]:
    """Return every destination in this folder, by name."""
    modules = (import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__))
    classes = (getattr(module, "DESTINATION", None) for module in modules)
    return {each.name: each for each in classes if each is not None}
