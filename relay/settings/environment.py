"""A settings model filled from the environment, with every fault of it."""

from collections.abc import Iterator, Mapping
from typing import Final, TypeVar, get_args, get_origin

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic.fields import FieldInfo

from relay.settings.slips import quoted, secret_slip, url_slip

Model = TypeVar("Model", bound=BaseModel)

_URLS: Final = frozenset({"SEGMENT_HOST", "RELAY_OUTBOX_URL", "DATABASE_URL"})


def fields_of(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, FieldInfo]]:
    """Each field's variable, the key that pydantic reads it by, and the field."""
    for name, field in model.model_fields.items():
        yield field.alias or prefix + name.upper(), field.alias or name, field


def read_model(
    model: type[Model], prefix: str, given: Mapping[str, str]
) -> tuple[Model | None, list[str]]:
    """The model filled from its variables, or what is wrong with each of them."""
    fields = [*fields_of(model, prefix)]
    values = {key: given[name].strip() for name, key, _ in fields if name in given}
    slips = {key: _slip(name, field, values[key]) for name, key, field in fields if key in values}
    faults = {key: slip for key, slip in slips.items() if slip}
    settings = None
    try:
        settings = model.model_validate(values)
    except ValidationError as error:
        # Only the kind of fault is told: the value may be a secret. A slip is its cause.
        for fault in error.errors(include_input=False, include_url=False):
            faults.setdefault(str(fault["loc"][0]), _sentence(fault["type"], fault["msg"]))
    told = [f"{name}: {faults[key]}" for name, key, _ in fields if key in faults]
    return (None if told else settings), told


def _slip(name: str, field: FieldInfo, value: str) -> str | None:
    """What is wrong with the value, whatever the field makes of it."""
    if get_origin(field.annotation) is tuple:
        return secret_slip(map(str.strip, value.split(",")))
    if SecretStr in {field.annotation, *get_args(field.annotation)}:
        return secret_slip([value])
    return url_slip(value) if name in _URLS else quoted(value)


def _sentence(kind: str, message: str) -> str:
    if kind == "missing":
        return "required, and not set"
    return message.removeprefix("Value error, ").removeprefix("Input ")
