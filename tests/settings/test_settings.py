import os
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from relay.cli import main
from relay.cli.app import credentials
from relay.destinations.segment import Segment, SegmentSettings
from relay.errors import SettingsError
from relay.settings import Settings, variables
from relay.settings.slips import BROKEN, NAMED, PLACEHOLDER, QUOTED, UNEXPANDED
from relay.sources.vero import VeroSettings
from tests.harness.processes import RelayProcess, run
from tests.harness.routes import settings_models

MODELS = settings_models()
NAMES = [variable.name for variable in variables(*MODELS)]
KEY = {"SEGMENT_WRITE_KEY": "a-write-key"}
SECRET = "first-secret-0123456789"


def read(**environ: str) -> Settings:
    """Return the settings from these variables and a write key."""
    return Settings.from_env(KEY | environ, *MODELS, credentials())


def faults(**environ: str) -> tuple[str, ...]:
    """Return the faults of these variables and a write key."""
    with pytest.raises(SettingsError) as error:
        read(**environ)
    return error.value.faults


def vero(settings: Settings) -> VeroSettings:
    model = settings.source("vero")
    assert isinstance(model, VeroSettings)
    return model


def segment(settings: Settings) -> SegmentSettings:
    model = settings.destination("segment")
    assert isinstance(model, SegmentSettings)
    return model


def write_key(settings: Settings) -> str:
    key = segment(settings).write_key
    assert key
    return key.get_secret_value()


def segment_url(settings: Settings) -> str:
    return Segment(segment(settings)).url


def test_only_the_write_key_is_required() -> None:
    read_settings = read()

    assert write_key(read_settings) == "a-write-key"
    assert segment_url(read_settings) == "https://api.segment.io"
    assert read_settings.outbox == "sqlite:///relay.db"
    assert (read_settings.port, segment(read_settings).anonymous_id) == (8000, "email")
    assert (read_settings.log_level, read_settings.log_format) == ("info", None)
    assert vero(read_settings) == VeroSettings(secret=(), tests="ignore", loop="block")


def test_every_variable_is_read() -> None:
    read_settings = read(
        SEGMENT_REGION="eu",
        SEGMENT_HOST="https://events.example.com",
        RELAY_OUTBOX_URL="sqlite:////var/lib/relay/events.db",
        DATABASE_URL="mysql://another.example.com/program",
        RELAY_ALLOW_EPHEMERAL="1",
        DYNO="web.1",
        RELAY_RETENTION_DAYS="7",
        RELAY_MAX_BACKLOG="1000000",
        RELAY_MIN_FREE_DISK="0",
        RELAY_ANONYMOUS_ID="sha256",
        RELAY_TRAITS_EMAIL="omit",
        PORT="5000",
        RELAY_LOG_LEVEL="debug",
        RELAY_LOG_FORMAT="console",
        RELAY_VERO_SECRET=SECRET,
        RELAY_VERO_TESTS="forward",
        RELAY_VERO_LOOP="allow",
        RELAY_CUSTOMERIO_SIGNING_KEY=f"another-{SECRET}",
        RELAY_CUSTOMERIO_TOLERANCE="300",
        RELAY_CUSTOMERIO_MACHINE="drop",
        RELAY_SEGMENT_WRITE_KEY=f"servers-{SECRET}",
        RELAY_SEGMENT_BROWSER_WRITE_KEY=f"browsers-{SECRET}",
        RELAY_SEGMENT_BROWSER_MAY="all",
        RELAY_SEGMENT_ORIGINS="https://app.example.com,https://shop.example.com",
        RELAY_SEGMENT_SHARED_SECRET=f"shared-{SECRET}",
        VERO_AUTH_TOKEN="an-auth-token",
        VERO_HOST="https://vero.example.com",
        VERO_UNSUBSCRIBE="segment",
        VERO_ANONYMOUS="id",
        VERO_SCREEN="track",
        VERO_DELETE="1",
        VERO_RATE="20",
        VERO_CONNECTIONS="4",
    )

    assert read_settings.shown() == {
        "outbox": "sqlite:////var/lib/relay/events.db",
        "allow_ephemeral": True,
        "dyno": "web.1",
        "retention_days": 7,
        "max_backlog": 1_000_000,
        "min_free_disk": 0,
        "segment": {
            "region": "eu",
            "host": "https://events.example.com",
            "anonymous_id": "sha256",
            "traits_email": "omit",
            "browser_may": "all",
            "origins": ["https://app.example.com", "https://shop.example.com"],
        },
        "port": 5000,
        "log_level": "debug",
        "log_format": "console",
        "vero": {
            "host": "https://vero.example.com",
            "unsubscribe": "segment",
            "anonymous": "id",
            "screen": "track",
            "delete": True,
            "rate": 20,
            "connections": 4,
            "tests": "forward",
            "loop": "allow",
        },
        "customerio": {"tolerance": 300, "machine": "drop"},
    }
    assert read_settings.secrets() == [
        *("a-write-key", "an-auth-token", f"another-{SECRET}"),
        *(f"servers-{SECRET}", f"browsers-{SECRET}", f"shared-{SECRET}", SECRET),
    ]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("blank", ["", "  ", "\n"])
def test_a_blank_variable_counts_as_unset(name: str, blank: str) -> None:
    if name in KEY:
        assert faults(**{name: blank}) == (
            "SEGMENT_WRITE_KEY or VERO_AUTH_TOKEN: required, and not set",
        )
    else:
        assert read(**{name: blank}).shown() == read().shown()


def test_blanks_around_a_value_are_dropped() -> None:
    read_settings = read(SEGMENT_WRITE_KEY=" key\n", PORT=" 5000 ", RELAY_VERO_SECRET=f" {SECRET} ")

    assert read_settings.port == 5000
    assert read_settings.secrets() == ["key", SECRET]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SEGMENT_WRITE_KEY", "two words"),
        ("SEGMENT_REGION", "ap"),
        ("RELAY_ANONYMOUS_ID", "md5"),
        ("PORT", "http"),
        ("PORT", "-1"),
        ("PORT", "65536"),
        ("RELAY_LOG_LEVEL", "chatty"),
        ("RELAY_LOG_FORMAT", "xml"),
        ("RELAY_VERO_SECRET", "x" * 15),
        ("RELAY_VERO_SECRET", f"{SECRET},short"),
        ("RELAY_VERO_SECRET", f"{SECRET},"),
        ("RELAY_VERO_TESTS", "drop"),
        ("RELAY_VERO_LOOP", "maybe"),
        ("RELAY_COLOUR", "blue"),
        ("SEGMENT_COLOUR", "blue"),
    ],
)
def test_a_fault_names_its_variable(name: str, value: str) -> None:
    (fault,) = faults(**{name: value})

    assert fault.startswith(f"{name}: ")
    assert "\n" not in fault


def test_a_fault_says_what_is_valid() -> None:
    assert faults(SEGMENT_REGION="ap", RELAY_VERO_SECRET="short") == (
        "SEGMENT_REGION: should be 'us' or 'eu'",
        "RELAY_VERO_SECRET: each secret needs at least 16 characters",
    )


def test_all_faults_are_reported_at_once() -> None:
    found = faults(
        SEGMENT_WRITE_KEY="",
        SEGMENT_REGION="ap",
        SEGMENT_HOST="events",
        PORT="http",
        RELAY_VERO_SECRET="short",
        RELAY_VERO_TESTS="drop",
        RELAY_VERO_SECERT=SECRET,
    )

    assert [fault.partition(":")[0] for fault in found] == [
        "SEGMENT_WRITE_KEY",
        "SEGMENT_REGION",
        "SEGMENT_HOST",
        "PORT",
        "RELAY_VERO_SECRET",
        "RELAY_VERO_TESTS",
        "RELAY_VERO_SECERT",
    ]


@pytest.mark.parametrize(
    ("mistyped", "meant"),
    [
        ("segment_region", "SEGMENT_REGION"),
        ("Relay_Vero_Secret", "RELAY_VERO_SECRET"),
        ("SEGMENT_WRITEKEY", "SEGMENT_WRITE_KEY"),
        ("SEGMENT_RGION", "SEGMENT_REGION"),
        ("RELAY_OUTBOX", "RELAY_OUTBOX_URL"),
        ("RELAY_VERO_SECERT", "RELAY_VERO_SECRET"),
        ("RELAY_VERO_TEST", "RELAY_VERO_TESTS"),
    ],
)
def test_a_mistyped_name_is_a_fault_that_suggests_the_right_one(mistyped: str, meant: str) -> None:
    (fault,) = faults(**{mistyped: "something"})

    assert fault.startswith(f"{mistyped}: ")
    assert meant in fault


def test_the_variables_of_a_new_destination_are_relays_own() -> None:
    class Model(BaseModel):
        key: str = Field(default="", alias="TOY_KEY")
        colour: str = ""

    sources, destinations = MODELS
    models = sources, destinations | {"toy": Model}
    with pytest.raises(SettingsError) as error:
        Settings.from_env(KEY | {"TOY_KYE": "1", "RELAY_TOY_COLOR": "red"}, *models, credentials())

    assert error.value.faults == (
        "RELAY_TOY_COLOR: no such setting; RELAY_TOY_COLOUR?",
        "TOY_KYE: no such setting; TOY_KEY?",
    )


@pytest.mark.parametrize("name", ["PATH", "VEROS_SECRET", "RELAYS_COLOUR", "relay_colour", "HOST"])
def test_variables_of_other_programs_are_left_alone(name: str) -> None:
    assert read(**{name: "something"}).shown() == read().shown()


@pytest.mark.parametrize(
    ("environ", "url"),
    [
        ({"SEGMENT_REGION": "us"}, "https://api.segment.io"),
        ({"SEGMENT_REGION": "EU"}, "https://events.eu1.segmentapis.com"),
        ({"SEGMENT_HOST": "http://127.0.0.1:9000/"}, "http://127.0.0.1:9000"),
        ({"SEGMENT_HOST": "https://a.example/t/", "SEGMENT_REGION": "eu"}, "https://a.example/t"),
    ],
)
def test_events_go_to_the_region_or_the_host(environ: dict[str, str], url: str) -> None:
    assert segment_url(read(**environ)) == url


@pytest.mark.parametrize(
    "host",
    [
        "example.com",
        "example.com:443",
        "ftp://example.com",
        "https://",
        "https:///v2",
        "https://example.com/v1",
        "https://example.com/t/v1/",
        "https://example.com?region=eu",
        "https://example.com/#eu",
        "https://relay:hunter2@example.com",
        "https://relay@example.com",
        "https://[::1",
        "https://[hunter2]",
        "https://relay:hunter2\u2100@example.com",
        "https://example.com:99999",
        "https://example.com:x",
        "https://exa mple.com",
        "https://example.com?",
        "https://example.com#",
    ],
)
def test_a_host_is_a_base_url(host: str) -> None:
    (fault,) = faults(SEGMENT_HOST=host)

    assert fault.startswith("SEGMENT_HOST: ")
    assert "hunter2" not in fault


SECRETS = [
    *("SEGMENT_WRITE_KEY", "RELAY_VERO_SECRET", "RELAY_CUSTOMERIO_SIGNING_KEY"),
    *("RELAY_CONSOLE_PASSWORD", "RELAY_METRICS_TOKEN", "VERO_AUTH_TOKEN"),
]
URLS = ["SEGMENT_HOST", "VERO_HOST", "RELAY_OUTBOX_URL", "DATABASE_URL"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("quotes", ['""', "''", "``", "“”", '"', "'"])
def test_a_quoted_value_is_refused_with_its_likely_cause(name: str, quotes: str) -> None:
    value = quotes[0] + f"postgresql://{SECRET}" + quotes[1:]

    assert faults(**{"VERO_AUTH_TOKEN": "an-auth-token", name: value}) == (f"{name}: {QUOTED}",)


@pytest.mark.parametrize("name", ["RELAY_VERO_SECRET", "RELAY_CUSTOMERIO_SIGNING_KEY"])
def test_each_of_several_secrets_may_be_the_quoted_one(name: str) -> None:
    assert "quotes" in faults(**{name: f'{SECRET},"{SECRET}"'})[0]
    assert "quotes" in faults(**{name: f"'{SECRET}, {SECRET}'"})[0]


_BROKEN = [f"{SECRET} # of the source", f"{SECRET}\n{SECRET}", f"{SECRET[:9]} {SECRET}"]
_BROKEN += [
    f"{SECRET}\x1b",
    f"\u200b{SECRET}",
    f"{SECRET}\ufeff",
    f"a\u00a0{SECRET}",
    f"a\0{SECRET}",
]


@pytest.mark.parametrize("name", [*SECRETS, *URLS])
@pytest.mark.parametrize("value", _BROKEN)
def test_a_secret_or_a_url_with_a_blank_or_an_invisible_character_is_refused(
    name: str, value: str
) -> None:
    text = f"https://{value}" if name in URLS else value

    assert faults(**{name: text}) == (f"{name}: {BROKEN}",)


_PLACEHOLDERS = [
    "...",
    "…",
    "<secret>",
    "<your RELAY_VERO_SECRET>",
    "[secret]",
    "changeme",
    "CHANGE_ME",
]
_PLACEHOLDERS += [
    "change-me-please",
    "changeme123",
    "replace-me",
    "replace with your key",
    "xxx",
    "x" * 32,
]
_PLACEHOLDERS += ["your-write-key", "YOUR_SECRET_HERE", "your_segment_write_key", "insert-key-here"]
_PLACEHOLDERS += [
    "secret",
    "Password",
    "null",
    "undefined",
    "placeholder",
    "SEGMENT_WRITE_KEY",
    "***",
]
_PLACEHOLDERS += [
    "wk_0123456789abcdef…",
    "wk_0123456789abcdef...",
    "***************cdef",
    "REDACTED",
]
_UNEXPANDED = [
    "$(openssl rand -hex 16)",
    "${RELAY_VERO_SECRET}",
    "$SECRET",
    "{{ secret }}",
    "%SECRET%",
]


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("value", _PLACEHOLDERS)
def test_a_placeholder_is_refused(name: str, value: str) -> None:
    assert faults(**{name: value}) == (f"{name}: {PLACEHOLDER}",)


@pytest.mark.parametrize("name", [*SECRETS, "SEGMENT_HOST", "DATABASE_URL"])
def test_a_value_that_begins_with_a_variables_name_is_refused(name: str) -> None:
    assert faults(**{name: f"{name}=https://0123456789abcdef"}) == (f"{name}: {NAMED}",)


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("quotes", ["„“", "‚‘", "«»", "»«", "‹›", "＂＂"])  # noqa: RUF001 (meant)
def test_quotes_of_any_language_are_refused(name: str, quotes: str) -> None:
    assert faults(**{name: f"{quotes[0]}{SECRET}{quotes[1]}"}) == (f"{name}: {QUOTED}",)


def test_the_fault_of_a_short_password_is_a_sentence() -> None:
    (fault,) = faults(RELAY_CONSOLE_PASSWORD="a-few")

    assert fault == "RELAY_CONSOLE_PASSWORD: a password needs at least 12 characters"


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("value", _UNEXPANDED)
def test_a_variable_that_no_shell_has_replaced_is_refused(name: str, value: str) -> None:
    assert faults(**{name: value}) == (f"{name}: {UNEXPANDED}",)


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        ("SEGMENT_HOST", "https://...", PLACEHOLDER),
        ("SEGMENT_HOST", "https://<host>", PLACEHOLDER),
        ("SEGMENT_HOST", "https://${HOST}", UNEXPANDED),
        ("DATABASE_URL", "postgresql://user:password@host/database", PLACEHOLDER),
        ("RELAY_OUTBOX_URL", "postgresql://relay:<password>@db.example.com/relay", PLACEHOLDER),
        ("RELAY_OUTBOX_URL", "postgresql://relay:${PASSWORD}@db.example.com/relay", UNEXPANDED),
    ],
)
def test_a_url_with_a_placeholder_is_refused(name: str, value: str, fault: str) -> None:
    assert faults(**{name: value}) == (f"{name}: {fault}",)


@pytest.mark.parametrize(
    "secret",
    [
        *("demo-write-key", "a-write-key", "wk", "bench", "yourself-and-i-4711", "exchange-me"),
        *(
            "secretly-0123456789",
            "changeable-weather-17",
            'it\'s-"quoted"-inside',
            "pässwörd-of-17",
            "what...ever-0123",
            "RELAY=0123456789",
        ),
    ],
)
def test_a_secret_that_only_resembles_a_slip_is_accepted(secret: str) -> None:
    assert write_key(read(SEGMENT_WRITE_KEY=secret)) == secret


def test_a_file_may_have_any_name_without_quotes_around_it() -> None:
    assert read(RELAY_OUTBOX_URL="sqlite:////srv/my <...> data/relay.db").on_sqlite


def test_another_programs_database_is_ignored() -> None:
    own = "sqlite:///relay.db"

    assert read(RELAY_OUTBOX_URL=own, DATABASE_URL='"postgresql://<host>"').outbox == own


def test_an_address_is_omitted_only_where_it_is_not_the_anonymous_id() -> None:
    (fault,) = faults(RELAY_TRAITS_EMAIL="omit")

    assert fault.startswith("RELAY_TRAITS_EMAIL: ")
    assert "RELAY_ANONYMOUS_ID=sha256" in fault
    assert faults(RELAY_TRAITS_EMAIL="omit", RELAY_ANONYMOUS_ID="sha-256") == (
        "RELAY_ANONYMOUS_ID: should be 'email' or 'sha256'",
    )
    omitted = read(RELAY_TRAITS_EMAIL="Omit", RELAY_ANONYMOUS_ID="sha256")
    assert segment(omitted).traits_email == "omit"


@pytest.mark.parametrize(
    ("host", "unwise"),
    [
        ("http://events.example.com", True),
        ("HTTP://10.0.0.7:8080/t", True),
        ("http://localhost.example.com", True),
        ("http://[2001:db8::1]", True),
        ("https://events.example.com", False),
        ("http://localhost:9000", False),
        ("http://127.0.0.1:9000", False),
        ("http://127.1.2.3", False),
        ("http://[::1]:9000", False),
    ],
)
def test_plain_http_to_another_machine_gives_a_warning(host: str, *, unwise: bool) -> None:
    warnings = Segment(segment(read(SEGMENT_HOST=host))).warnings()

    assert len(warnings) == unwise
    assert all(warning.startswith("SEGMENT_HOST: ") for warning in warnings)


def test_check_prints_and_serve_logs_the_warnings(tmp_path: Path) -> None:
    environ = {
        "SEGMENT_WRITE_KEY": "wk",
        "SEGMENT_HOST": "http://relay.invalid",
        "RELAY_VERO_SECRET": SECRET,
        "RELAY_OUTBOX_URL": f"sqlite:///{tmp_path}/relay.db",
    }
    checked = run("check", **environ)
    with RelayProcess(tmp_path / "relay.db", environ["SEGMENT_HOST"]) as relay:
        lines = [line for line in relay.log() if line["event"] == "settings.unwise"]

    assert "warning   SEGMENT_HOST: " in checked.stdout
    assert [line["level"] for line in lines] == ["warning"]
    assert lines[0]["warning"].startswith("SEGMENT_HOST: ")


def test_an_outbox_of_an_unknown_kind_is_a_fault() -> None:
    (fault,) = faults(RELAY_OUTBOX_URL="mysql://outbox")

    assert fault == "RELAY_OUTBOX_URL: should begin with sqlite:/// or postgresql://"


def test_variables_that_kubernetes_sets_for_a_service_called_relay_are_left_alone() -> None:
    links = {
        "RELAY_SERVICE_HOST": "10.0.0.7",
        "RELAY_SERVICE_PORT_HTTP": "80",
        "RELAY_PORT": "tcp://10.0.0.7:80",
        "RELAY_PORT_80_TCP_ADDR": "10.0.0.7",
    }

    assert read(**links).shown() == read().shown()
    assert faults(RELAY_PORT="8000")


DATABASE = "postgres://owner:hunter2@db.example.com:5432/events"


def test_the_outbox_is_the_named_one_or_else_the_platforms_database() -> None:
    named = "postgresql://localhost/relay"

    assert read(DATABASE_URL=DATABASE).outbox == DATABASE
    assert read(DATABASE_URL=DATABASE, RELAY_OUTBOX_URL=named).outbox == named
    assert read(DATABASE_URL=DATABASE, RELAY_OUTBOX_URL="sqlite:///a.db").on_sqlite


def test_on_heroku_the_database_is_reached_over_tls() -> None:
    own = DATABASE + "?sslmode=verify-full"

    assert read(DYNO="web.1", DATABASE_URL=DATABASE).outbox == DATABASE + "?sslmode=require"
    assert read(DYNO="web.1", DATABASE_URL=own).outbox == own


@pytest.mark.parametrize("environ", [{}, {"RELAY_OUTBOX_URL": "sqlite:////app/relay.db"}])
def test_on_heroku_a_file_is_refused_unless_it_is_allowed(environ: dict[str, str]) -> None:
    (fault,) = faults(DYNO="web.1", **environ)

    assert "heroku addons:create heroku-postgresql" in fault
    assert read(DYNO="web.1", RELAY_ALLOW_EPHEMERAL="1", **environ).on_sqlite


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (DATABASE, "postgres://db.example.com:5432/events"),
        ("postgresql:///events?user=a&%70assword=hunter2", "postgresql:///events"),
        ("postgresql://db/events?sslpassword=hunter2", "postgresql://db/events"),
        ("postgresql://owner:hunter2%21+@db/events", "postgresql://db/events"),
    ],
)
def test_the_password_of_the_outbox_is_not_shown(url: str, shown: str) -> None:
    settings = read(RELAY_OUTBOX_URL=url)

    assert settings.outbox_shown == shown
    assert settings.shown()["outbox"] == shown
    assert "hunter2" in str(settings.secrets())


@pytest.mark.parametrize(
    "password",
    [
        *(
            "half@hunter2",
            "half/hunter2",
            "@hunter2",
            "hunter2#half",
            "hunter2?half",
            "half#hunter2",
        ),
        *("half[hunter2]", "hunter2[half", "hunter2]half", "hunter2\N{FULLWIDTH SOLIDUS}half"),
    ],
)
def test_a_password_that_would_be_taken_for_the_host_is_refused(password: str) -> None:
    (fault,) = faults(RELAY_OUTBOX_URL=f"postgresql://owner:{password}@db.example.com/events")

    assert "%40" in fault
    assert "hunter2" not in fault


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://owner:half%23hunter2%5B@[::1]:5432/events?sslmode=require",
        "postgresql://owner:hunter2@db?sslmode=require",
        "postgresql:///events?host=/var/run/postgresql&password=hunter2",
        "postgresql://owner:hunter2@one:5432,two:5433/events",
    ],
)
def test_a_url_whose_password_is_clear_is_not_refused(url: str) -> None:
    settings = read(RELAY_OUTBOX_URL=url)

    assert "hunter2" not in settings.outbox_shown
    assert "hunter2" in str(settings.secrets())


def test_a_variable_may_hold_several_secrets() -> None:
    secrets = vero(read(RELAY_VERO_SECRET=f"{SECRET} , {SECRET}-new")).secret

    assert [secret.get_secret_value() for secret in secrets] == [SECRET, f"{SECRET}-new"]


def test_the_settings_for_the_log_hold_no_secret() -> None:
    read_settings = read(RELAY_VERO_SECRET=f"{SECRET},{SECRET}0")
    shown = repr((read_settings, read_settings.shown(), vero(read_settings)))

    assert "a-write-key" not in shown
    assert SECRET not in shown


_MARKER = "hunter2"
_AROUND = st.sampled_from(["", " ", ",", "https://", "sqlite:///", "@example.com", "/v1", "x" * 16])


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from([*NAMES, "RELAY_VERO_SECERT"]), st.tuples(_AROUND, _AROUND)))
def test_no_fault_repeats_a_value(around: dict[str, tuple[str, str]]) -> None:
    """People paste secrets into the wrong variable now and then."""
    environ = {name: f"{before}{_MARKER}{after}" for name, (before, after) in around.items()}
    found = faults(**environ | {"PORT": _MARKER})

    assert _MARKER not in "\n".join(found)


@pytest.mark.parametrize("command", ["check", "serve"])
def test_faults_end_the_command_with_a_line_for_each(command: str, tmp_path: Path) -> None:
    others = [name for name in os.environ if name.startswith(("RELAY_", "SEGMENT_"))]
    environ: dict[str, str | None] = dict.fromkeys([*NAMES, *others])
    environ |= {"SEGMENT_HOST": "events", "RELAY_VERO_SECRET": _MARKER, "RELAY_PROT": "1"}
    environ |= {"RELAY_OUTBOX_URL": f"sqlite:///{tmp_path}/relay.db"}
    result = CliRunner().invoke(main, [command], env=environ)
    lines = result.stderr.splitlines()

    assert (result.exit_code, result.stdout) == (2, "")
    assert [line.partition(":")[0] for line in lines] == [
        "SEGMENT_WRITE_KEY",
        "SEGMENT_HOST",
        "RELAY_VERO_SECRET",
        "RELAY_PROT",
    ]
    assert _MARKER not in result.output
    assert list(tmp_path.iterdir()) == []
