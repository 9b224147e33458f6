"""Sources: who sends webhooks to relay.

A source is a module in this folder that names its class `SOURCE`.
"""

from importlib import import_module
from pkgutil import iter_modules

from relay.sources.protocol import Source, Verified, Verifier, Webhook

__all__ = ["Source", "Verified", "Verifier", "Webhook", "source_classes"]


def source_classes() -> dict[str, type[Source]]:
    """Return every source in this folder, by name."""
    modules = (import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__))
    return {module.SOURCE.name: module.SOURCE for module in modules if hasattr(module, "SOURCE")}
