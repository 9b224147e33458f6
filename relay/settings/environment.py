"""Fills settings models from environment variables, and finds every fault in the variables."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, TypeVar, get_args, get_origin

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic.fields import FieldInfo

from relay.settings.slips import quoted, secret_slip, url_slip

Model = TypeVar("Model", bound=BaseModel)

Models = Mapping[str, type[BaseModel]]
"""Settings models of sources or destinations, by their names."""

PREFIX: Final = "RELAY_"
"""The prefix of relay's variables; a field with an alias is read from that name instead."""

URL: Final = {"format": "uri"}
"""The `json_schema_extra` of a field that holds a URL."""

# Kubernetes sets variables like these in each container if a service is called relay.
_SERVICE_LINK: Final = re.compile(r"RELAY_(SERVICE_|PORT_\d+_(TCP|UDP|SCTP)).*|RELAY_PORT=\w+://.*")


def prefix_of(name: str) -> str:
    """Return the prefix of the variables of a source or destination."""
    return f"{PREFIX}{name.upper()}_"


def fields_of(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, FieldInfo]]:
    """Yield each field's variable, the key that pydantic reads it by, and the field."""
    for name, field in model.model_fields.items():
        yield field.alias or prefix + name.upper(), field.alias or name, field


def read_model(
    model: type[Model], prefix: str, given: Mapping[str, str]
) -> tuple[Model | None, list[str]]:
    """Return the model filled from its variables, or None and a fault for each wrong variable."""
    fields = [*fields_of(model, prefix)]
    values = {key: given[name].strip() for name, key, _ in fields if name in given}
    slips = {key: _slip(field, values[key]) for _, key, field in fields if key in values}
    faults = {key: slip for key, slip in slips.items() if slip}
    settings = None
    try:
        settings = model.model_validate(values)
    except ValidationError as error:
        # A fault never repeats the value, which may be a secret. A slip says more than pydantic.
        for fault in error.errors(include_input=False, include_url=False):
            faults.setdefault(str(fault["loc"][0]), _sentence(fault["type"], fault["msg"]))
    sentences = [f"{name}: {faults[key]}" for name, key, _ in fields if key in faults]
    return (None if sentences else settings), sentences


def read_models(models: Models, given: Mapping[str, str]) -> tuple[dict[str, BaseModel], list[str]]:
    """Return the models filled from their variables, by name, and every fault found."""
    settings: dict[str, BaseModel] = {}
    faults: list[str] = []
    for name, model in models.items():
        own, own_faults = read_model(model, prefix_of(name), given)
        faults += own_faults
        if own is not None:
            settings[name] = own
    return settings, faults


def missing_credentials(
    given: Mapping[str, str], sources: Models, credentials: Mapping[str, str]
) -> list[str]:
    """Return a fault for each credential that is needed and not given.

    One is needed for each source that has a secret. Without any credential nothing can be sent.

    Args:
        given: the variables.
        sources: settings models of the sources.
        credentials: the credential that each source needs, by its name.
    """
    needed = {
        credentials[source]
        for source, model in sources.items()
        for name, _, field in fields_of(model, prefix_of(source))
        if name in given and holds_secret(field)
    }
    if not needed and not given.keys() & {*credentials.values()}:
        needed = {" or ".join(sorted({*credentials.values()}))}
    return [f"{name}: required, and not set" for name in sorted(needed - given.keys())]


def unknown_variables(
    given: Mapping[str, str], known: Sequence[str], prefixes: tuple[str, ...]
) -> list[str]:
    """Return a fault for each variable that has one of the prefixes but sets nothing."""
    faults = []
    for name in sorted(given.keys() - set(known)):
        # A setting's name in lower case is a slip. Other lower-case names are another program's.
        is_ours = name.startswith(prefixes) or (
            name.upper() in known and name.upper().startswith(prefixes)
        )
        if is_ours and not _SERVICE_LINK.fullmatch(f"{name}={given[name]}"):
            close = difflib.get_close_matches(name.upper(), known, n=1)
            faults.append(f"{name}: no such setting" + (f"; {close[0]}?" if close else ""))
    return faults


def _slip(field: FieldInfo, value: str) -> str | None:
    """Return what went wrong when the value was pasted, even if the field accepts it."""
    if holds_secret(field):
        is_list = get_origin(field.annotation) is tuple
        return secret_slip(map(str.strip, value.split(",")) if is_list else [value])
    return url_slip(value) if field.json_schema_extra == URL else quoted(value)


def holds_secret(field: FieldInfo) -> bool:
    """Return whether the field is a secret or several."""
    return SecretStr in {field.annotation, *get_args(field.annotation)}


def _sentence(kind: str, message: str) -> str:
    if kind == "missing":
        return "required, and not set"
    return message.removeprefix("Value error, ").removeprefix("Input ")
