"""Relay's own settings; those of its sources and destinations are kept with them."""

import hmac
import re
from collections.abc import Mapping
from typing import Annotated, Final, Literal, cast
from urllib.parse import unquote, urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    field_validator,
)

from relay.errors import SettingsError
from relay.settings.environment import (
    PREFIX,
    URL,
    Models,
    fields_of,
    holds_secret,
    missing_credentials,
    prefix_of,
    read_model,
    read_models,
    unknown_variables,
)

_DEFAULT_OUTBOX: Final = "sqlite:///relay.db"
_STORES: Final = ("sqlite:///", "postgresql://", "postgres://")

# No @ except the one before the host, and before that @ nothing that ends a host. Otherwise part of
# a password would be taken for the host, and shown.
_CLEAR_URL: Final = re.compile(r"\w+://([^@/?#\[\]]*@)?[^@/?#]*([/?#][^@]*)?")

_SHORTEST_PASSWORD: Final = 12
_SHORTEST_TOKEN: Final = 16

_LowerCase = BeforeValidator(str.lower)


class Settings(BaseModel):
    """Every setting of relay itself. Frozen; `Settings.from_env` creates it; shows no secret."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    outbox_url: str | None = Field(
        default=None,
        json_schema_extra={**URL},
        description="Where relay stores events: `sqlite:///relative.db`, `sqlite:////absolute.db`"
        " or `postgresql://user:password@host/database`. If unset, relay uses `DATABASE_URL`; if"
        f" that is unset too, `{_DEFAULT_OUTBOX}`.",
    )
    database_url: str | None = Field(
        default=None,
        alias="DATABASE_URL",
        json_schema_extra={**URL},
        description="Where relay stores events if `RELAY_OUTBOX_URL` is unset. Heroku Postgres sets"
        " it.",
    )
    allow_ephemeral: bool = Field(
        default=False,
        description="`1` allows a SQLite outbox on a disk that is wiped from time to time, as on"
        " Heroku or a tmpfs. Relay then loses events.",
    )
    dyno: str | None = Field(
        default=None, alias="DYNO", description="Heroku sets it, and wipes the disk every day."
    )
    retention_days: int = Field(
        default=30,
        ge=1,
        le=36_500,
        description="Days that relay keeps a delivered event and recognises its duplicates. Relay"
        " keeps every other event until it is delivered.",
    )
    max_backlog: int | None = Field(
        default=None,
        ge=1,
        description="Most entries that may wait to be delivered. With more, relay answers webhooks"
        " 503. If unset, only the disk limits them.",
    )
    min_free_disk: int = Field(
        default=256,
        ge=0,
        description="MiB to keep free on the disk of a SQLite outbox. With less, relay answers"
        " webhooks 503 and still forwards what is stored.",
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
        description="Password for the console, 12 characters or more, with any user name. If unset,"
        " relay prints a link that opens the console once.",
    )
    metrics_token: SecretStr | None = Field(
        default=None,
        description="Bearer token for `/metrics`, 16 characters or more. If unset, anyone may read"
        " the metrics.",
    )
    log_level: Annotated[Literal["debug", "info", "warning", "error"], _LowerCase] = Field(
        default="info",
        description="Least important lines to log: `debug` (one for each webhook), `info` (one for"
        " each batch), `warning` or `error`.",
    )
    log_format: Annotated[Literal["json", "console"] | None, _LowerCase] = Field(
        default=None,
        description="Format of the log: `json` or `console`. If unset, `console` on a terminal and"
        " `json` elsewhere.",
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
        cls,
        environ: Mapping[str, str],
        sources: Models,
        destinations: Models,
        credentials: Mapping[str, str],
    ) -> "Settings":
        """Return the settings in the environment, with those of sources and destinations.

        A blank variable counts as unset. A variable with a prefix of relay's that sets nothing is a
        fault, because it is probably mistyped. Other variables are left alone.

        Args:
            environ: the environment.
            sources: settings models of the sources.
            destinations: settings models of the destinations.
            credentials: the variable that must be set once a source has a secret, by its name.

        Raises:
            SettingsError: at least one fault; it names all of them.
        """
        given = {name: value for name, value in environ.items() if value.strip()}
        if "RELAY_OUTBOX_URL" in given:  # then DATABASE_URL may be another program's
            given.pop("DATABASE_URL", None)
        destination_settings, faults = read_models(destinations, given)
        settings, core_faults = read_model(cls, PREFIX, given)
        source_settings, source_faults = read_models(sources, given)
        faults = missing_credentials(given, sources, credentials) + faults
        faults += core_faults + source_faults
        known = [
            name
            for model, prefix in models_with_prefixes(sources, destinations)
            for name, _, _ in fields_of(model, prefix)
        ]
        faults += unknown_variables(given, known, _prefixes(sources, destinations))
        if settings:
            faults += settings.outbox_faults()
        if settings is None or faults:
            raise SettingsError(faults)
        settings._sources = source_settings  # noqa: SLF001 (its own class)
        settings._destinations = destination_settings  # noqa: SLF001 (its own class)
        return settings

    def source(self, name: str) -> BaseModel:
        """Return the settings of a source, an instance of its model."""
        return self._sources[name]

    def destination(self, name: str) -> BaseModel:
        """Return the settings of a destination, an instance of its model."""
        return self._destinations[name]

    def webhook_secret(self, name: str) -> str:
        """Return the first secret of the source; empty if it has none."""
        secrets = getattr(self.source(name), "secret", ())
        return secrets[0].get_secret_value() if secrets else ""

    def outbox_faults(self) -> list[str]:
        """Return each reason why relay cannot or should not store events where the settings say."""
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
            # Heroku's servers require TLS; libpq's default would fall back to plain text.
            url += ("&" if "?" in url else "?") + "sslmode=require"
        return url

    @property
    def outbox_shown(self) -> str:
        """URL of the outbox for logs, without user name, password and parameters."""
        if self.on_sqlite:
            return self.outbox
        url = urlsplit(self.outbox)
        return f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"

    @property
    def on_sqlite(self) -> bool:
        """Whether the outbox is a SQLite file."""
        return self._given_outbox.startswith("sqlite:")

    @property
    def _given_outbox(self) -> str:
        return self.outbox_url or self.database_url or _DEFAULT_OUTBOX

    def shown(self) -> dict[str, object]:
        """Return every setting that is no secret, for the log."""
        hidden = {"outbox_url", "database_url", "console_password", "metrics_token"}
        shown = self.model_dump(mode="json", exclude=hidden) | {"outbox": self.outbox_shown}
        for name, model in [*self._destinations.items(), *self._sources.items()]:
            fields = type(model).model_fields
            hidden = {field for field in fields if holds_secret(fields[field])}
            own = model.model_dump(mode="json", exclude=hidden)
            shown[name] = {**cast("dict[str, object]", shown.get(name, {})), **own}
        return shown

    def fingerprint(self, text: str) -> str:
        """Return 8 hex digits of the text's HMAC: comparable, not reversible without our keys."""
        keys = [key for model in self._destinations.values() for key in _secrets_of(model)]
        digest = hmac.new("".join(keys).encode(), text.encode(errors="replace"), "sha256")
        return digest.hexdigest()[:8]

    def secrets(self) -> list[str]:
        """Return every text that must not be shown."""
        url = urlsplit(self.outbox)
        parameters = [pair.partition("=") for pair in url.query.split("&")]
        passwords = [value for name, _, value in parameters if "password" in unquote(name)]
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
    """Return whether libpq and `urlsplit` take the same part of the URL for the password."""
    try:
        urlsplit(url)
    except ValueError:  # its text may repeat the password
        return False
    return bool(_CLEAR_URL.fullmatch(url))


def models_with_prefixes(
    sources: Models, destinations: Models
) -> list[tuple[type[BaseModel], str]]:
    """Return every settings model and its variables' prefix, in the order of the documentation."""
    return [
        *((model, prefix_of(name)) for name, model in destinations.items()),
        (Settings, PREFIX),
        *((model, prefix_of(name)) for name, model in sources.items()),
    ]


def _prefixes(sources: Models, destinations: Models) -> tuple[str, ...]:
    """Return the prefixes that the variables of relay have, and those of no other program."""
    names = [
        name
        for models in (sources, destinations)
        for own, model in models.items()
        for name, _, _ in fields_of(model, prefix_of(own))
    ]
    return (PREFIX, *sorted({name.partition("_")[0] + "_" for name in names} - {PREFIX}))
