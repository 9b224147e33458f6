"""Documents every environment variable."""

from msgspec import Struct
from pydantic.fields import FieldInfo

from relay.settings.environment import Models, fields_of
from relay.settings.model import models_with_prefixes


class Variable(Struct, frozen=True):
    """One environment variable, documented in Markdown."""

    name: str
    default: str
    description: str


def variables(sources: Models, destinations: Models) -> list[Variable]:
    """Return every environment variable, in the order of the documentation."""
    return [
        Variable(name, _default(field), field.description or "")
        for model, prefix in models_with_prefixes(sources, destinations)
        for name, _, field in fields_of(model, prefix)
    ]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default is False:
        return "`0`"
    return "" if field.default in {None, ()} else f"`{field.default}`"
