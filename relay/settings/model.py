"""Every setting, read from the environment, checked all at once."""

import difflib
import hmac
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Final, Literal, cast
from urllib.parse import unquote, urlsplit

from msgspec import Struct
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    field_validator,
)
from pydantic.fields import FieldInfo

from relay.errors import SettingsError
from relay.settings.environment import fields_of, read_model

_CORE: Final = "RELAY_"
_PREFIXES: Final = (_CORE, "SEGMENT_")
_DEFAULT_OUTBOX: Final = "sqlite:///relay.db"
_STORES: Final = ("sqlite:///", "postgresql://", "postgres://")

# No @ but the one before the host, and nothing before it that ends a host: otherwise part of a
# password would be taken for the host, and shown.
_NETLOC: Final = re.compile(r"\w+://([^@/?#\[\]]*@)?[^@/?#]*([/?#][^@]*)?")

# Kubernetes tells each container of a service called relay by variables of this shape.
_SERVICE_LINK: Final = re.compile(r"RELAY_(SERVICE_|PORT_\d+_(TCP|UDP|SCTP)).*|RELAY_PORT=\w+://.*")

_SHORTEST_PASSWORD: Final = 12
_SHORTEST_TOKEN: Final = 16

_LowerCase = BeforeValidator(str.lower)

Models = Mapping[str, type[BaseModel]]
"""Of sources or destinations, by their names."""


class Settings(BaseModel):
    """What an operator can set. Made by `Settings.from_env`; frozen; prints no secret."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    outbox_url: str | None = Field(
        default=None,
        description="Where events are stored: `sqlite:///relative.db`, `sqlite:////absolute.db` or"
        " `postgresql://user:password@host/database`. Unset: `DATABASE_URL`, and without that"
        f" `{_DEFAULT_OUTBOX}`.",
    )
    database_url: str | None = Field(
        default=None,
        alias="DATABASE_URL",
        description="Where events are stored, as Heroku Postgres sets it.",
    )
    allow_ephemeral: bool = Field(
        default=False,
        description="`1` allows a SQLite outbox on a disk that is wiped, which loses events: on"
        " Heroku, or on a tmpfs.",
    )
    dyno: str | None = Field(
        default=None, alias="DYNO", description="Set by Heroku, whose disk is wiped every day."
    )
    retention_days: int = Field(
        default=30,
        ge=1,
        le=36_500,
        description="For how long delivered events are kept, and a duplicate of one is recognised."
        " What is not delivered is kept until it is.",
    )
    max_backlog: int | None = Field(
        default=None,
        ge=1,
        description="Most entries that may wait for Segment; beyond it webhooks are answered 503."
        " Unset: any number that the disk holds.",
    )
    min_free_disk: int = Field(
        default=256,
        ge=0,
        description="MiB that stay free on the disk of a SQLite outbox: with less, webhooks are"
        " answered 503, and what is stored can still be forwarded.",
    )
    port: int = Field(
        default=8000,
        alias="PORT",
        ge=0,
        le=65535,
        description="Port to listen on. Also `--port`.",
    )
    console_password: SecretStr | None = Field(
        default=None,
        description="Password that opens the console, 12 characters or more, with any user name."
        " Unset: a link that relay prints opens it, once.",
    )
    metrics_token: SecretStr | None = Field(
        default=None,
        description="What readers of `/metrics` must send as a Bearer token, 16 characters or more."
        " Unset: anyone may read it.",
    )
    log_level: Annotated[Literal["debug", "info", "warning", "error"], _LowerCase] = Field(
        default="info",
        description="`debug` (a line for each webhook), `info` (one for each batch), `warning` or"
        " `error`.",
    )
    log_format: Annotated[Literal["json", "console"] | None, _LowerCase] = Field(
        default=None,
        description="`json` or `console`; unset: `console` on a terminal, `json` elsewhere.",
    )

    _sources: Mapping[str, BaseModel] = PrivateAttr(default_factory=dict)
    _destinations: Mapping[str, BaseModel] = PrivateAttr(default_factory=dict)

    @field_validator("console_password")
    @classmethod
    def _not_short(cls, value: SecretStr) -> SecretStr:
        if len(value.get_secret_value()) < _SHORTEST_PASSWORD:
            raise ValueError(f"a password needs at least {_SHORTEST_PASSWORD} characters")
        return value

    @field_validator("metrics_token")
    @classmethod
    def _not_guessable(cls, value: SecretStr) -> SecretStr:
        if len(value.get_secret_value()) < _SHORTEST_TOKEN:
            raise ValueError(f"a token needs at least {_SHORTEST_TOKEN} characters")
        return value

    @classmethod
    def from_env(
        cls, environ: Mapping[str, str], sources: Models, destinations: Models
    ) -> "Settings":
        """Read the settings from the environment, those of sources and destinations among them.

        A variable set to nothing counts as not set. Variables without relay's prefixes are left
        alone; one with a prefix that names no setting is a fault, as it is most likely mistyped.

        Raises:
            SettingsError: at least one fault; it names all of them.
        """
        given = {name: value for name, value in environ.items() if value.strip()}
        if "RELAY_OUTBOX_URL" in given:  # then DATABASE_URL may be another program's
            given.pop("DATABASE_URL", None)
        faults: list[str] = []
        own_destinations = _read_models(destinations, given, faults)
        settings, own_faults = read_model(cls, _CORE, given)
        faults += own_faults
        own_sources = _read_models(sources, given, faults)
        faults += _unknown(given, [each.name for each in variables(sources, destinations)])
        if settings:
            faults += settings.outbox_faults()
        if settings is None or faults:
            raise SettingsError(faults)
        settings._sources = own_sources  # noqa: SLF001 (its own class)
        settings._destinations = own_destinations  # noqa: SLF001 (its own class)
        return settings

    def source(self, name: str) -> BaseModel:
        """Return the settings of a source, an instance of its model."""
        return self._sources[name]

    def destination(self, name: str) -> BaseModel:
        """Return the settings of a destination, an instance of its model."""
        return self._destinations[name]

    def webhook_secret(self, name: str) -> str:
        """The first secret of the source, or nothing if it has none."""
        secrets = getattr(self.source(name), "secret", ())
        return secrets[0].get_secret_value() if secrets else ""

    def outbox_faults(self) -> list[str]:
        """Why nothing can or should be stored where the settings say, if so."""
        if not self.outbox.startswith(_STORES):
            name = "RELAY_OUTBOX_URL" if self.outbox_url else "DATABASE_URL"
            return [f"{name}: should begin with sqlite:/// or postgresql://"]
        if not self.on_sqlite and not _is_clear(self.outbox):
            escapes = "%40 for @, %2F for /, %3F for ?, %23 for #, %5B for [, %5D for ]"
            return [f"the outbox's URL cannot be read: in a password, write {escapes}"]
        if self.dyno and self.on_sqlite and not self.allow_ephemeral:
            wiped = "Heroku wipes this disk every day, and a SQLite outbox with it"
            remedy = "add PostgreSQL: heroku addons:create heroku-postgresql"
            return [f"RELAY_OUTBOX_URL: {wiped}; {remedy}"]
        return []

    @property
    def outbox(self) -> str:
        """URL of the outbox, with its password."""
        url = self._given_outbox
        if self.dyno and not self.on_sqlite and "sslmode=" not in url:
            # Heroku's servers take nothing else, and libpq by itself would fall back to plain text.
            url += ("&" if "?" in url else "?") + "sslmode=require"
        return url

    @property
    def outbox_shown(self) -> str:
        """URL of the outbox, as a log may hold it: where it is, and nothing else."""
        if self.on_sqlite:
            return self.outbox
        url = urlsplit(self.outbox)
        return f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"

    @property
    def on_sqlite(self) -> bool:
        """Whether the outbox is a file."""
        return self._given_outbox.startswith("sqlite:")

    @property
    def _given_outbox(self) -> str:
        return self.outbox_url or self.database_url or _DEFAULT_OUTBOX

    def shown(self) -> dict[str, object]:
        """The settings as a log may hold them."""
        hidden = {
            "outbox_url",
            "database_url",
            "console_password",
            "metrics_token",
        }
        shown = self.model_dump(mode="json", exclude=hidden) | {"outbox": self.outbox_shown}
        for name, model in [*self._destinations.items(), *self._sources.items()]:
            hidden = {field for field, value in model if _is_secret(value)}
            own = model.model_dump(mode="json", exclude=hidden)
            shown[name] = {**cast("dict[str, object]", shown.get(name, {})), **own}
        return shown

    def fingerprint(self, text: str) -> str:
        """Return 8 hex digits of the text's HMAC: comparable, not reversible without our keys."""
        keys = [key for model in self._destinations.values() for key in _secrets_of(model)]
        digest = hmac.new("".join(keys).encode(), text.encode(errors="replace"), "sha256")
        return digest.hexdigest()[:8]

    def secrets(self) -> list[str]:
        """Every text that must not be shown."""
        url = urlsplit(self.outbox)
        given = [pair.partition("=") for pair in url.query.split("&")]
        passwords = [value for name, _, value in given if "password" in unquote(name)]
        passwords.append(url.password or "")
        models = [self, *self._destinations.values(), *self._sources.values()]
        own = [secret for model in models for secret in _secrets_of(model)]
        return own + [unquote(password) for password in passwords if password]


def _secrets_of(model: BaseModel) -> list[str]:
    return [
        secret.get_secret_value()
        for _, value in model
        for secret in (value if isinstance(value, tuple) else (value,))
        if isinstance(secret, SecretStr)
    ]


def _is_clear(url: str) -> bool:
    """Whether libpq and `urlsplit` take the same part of the URL for the password."""
    try:
        urlsplit(url)
    except ValueError:  # its own text may repeat the password
        return False
    return bool(_NETLOC.fullmatch(url))


def _is_secret(value: object) -> bool:
    return isinstance(value, SecretStr | tuple)


class Variable(Struct, frozen=True):
    """One variable of the environment, as the documentation tells it in Markdown."""

    name: str
    default: str
    description: str


def variables(sources: Models, destinations: Models) -> list[Variable]:
    """Return every variable there is, in the order of the documentation."""
    models: list[tuple[type[BaseModel], str]] = [
        *((model, _prefix(name)) for name, model in destinations.items()),
        (Settings, _CORE),
        *((model, _prefix(name)) for name, model in sources.items()),
    ]
    return [
        Variable(name, _default(field), field.description or "")
        for model, prefix in models
        for name, _, field in fields_of(model, prefix)
    ]


def _read_models(
    models: Models, given: Mapping[str, str], faults: list[str]
) -> dict[str, BaseModel]:
    """Fill each model from its variables; add what is wrong with them to the faults."""
    read: dict[str, BaseModel] = {}
    for name, model in models.items():
        own, more = read_model(model, _prefix(name), given)
        faults += more
        if own is not None:
            read[name] = own
    return read


def _unknown(given: Mapping[str, str], known: Sequence[str]) -> list[str]:
    """Return a fault for each variable that looks like relay's and is none."""
    faults = []
    for name in sorted(given.keys() - set(known)):
        # In lower case a setting's own name is a slip; any other is another program's.
        is_ours = name.startswith(_PREFIXES) or (
            name.upper() in known and name.upper().startswith(_PREFIXES)
        )
        if is_ours and not _SERVICE_LINK.fullmatch(f"{name}={given[name]}"):
            close = difflib.get_close_matches(name.upper(), known, n=1)
            faults.append(f"{name}: no such setting" + (f"; {close[0]}?" if close else ""))
    return faults


def _prefix(name: str) -> str:
    return f"{_CORE}{name.upper()}_"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default is False:
        return "`0`"
    return "" if field.default in {None, ()} else f"`{field.default}`"
