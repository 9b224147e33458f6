"""The files in `deploy/` and beside it keep their promises, as far as it shows without engines."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # it comes without annotations

from relay.cli import main
from relay.receiver.body import MAX_BODY_BYTES
from relay.settings import Settings, variables
from tests.harness.routes import settings_models

ROOT = Path(__file__).parents[2]
PORT = Settings.model_fields["port"].default

KNOWN = {variable.name for variable in variables(*settings_models())}
REQUIRED = {"SEGMENT_WRITE_KEY", "SEGMENT_REGION", "RELAY_VERO_SECRET"}
HEROKUS = {"DATABASE_URL", "DYNO", "PORT"}
SQLITES = {"RELAY_OUTBOX_URL", "RELAY_ALLOW_EPHEMERAL", "RELAY_MIN_FREE_DISK"}


def text(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def instructions(keyword: str) -> list[str]:
    """Return the arguments of each such instruction in the last stage of the Dockerfile."""
    joined = text("Dockerfile").replace("\\\n", " ")
    stage = re.split(r"^FROM ", joined, flags=re.MULTILINE)[-1]
    return re.findall(rf"^{keyword} (.+)$", stage, re.MULTILINE)


def processes() -> dict[str, str]:
    """Return each process type of the Procfile and its command, read as Heroku reads it."""
    return dict(re.findall(r"^([A-Za-z0-9_-]+):\s*(.+)$", text("Procfile"), re.MULTILINE))


def services() -> dict[str, Any]:
    """Return each service of compose.yaml."""
    found: dict[str, Any] = yaml.safe_load(text("deploy/compose.yaml"))["services"]
    return found


def relays() -> dict[str, Any]:
    """Return the services that run relay's image."""
    return {name: found for name, found in services().items() if found["image"] == "relay"}


def manifests() -> dict[str, Any]:
    """Return each object for Kubernetes by its kind."""
    found = list(yaml.safe_load_all(text("deploy/kubernetes.yaml")))
    return {manifest["kind"]: manifest for manifest in found}


def pod() -> dict[str, Any]:
    found: dict[str, Any] = manifests()["Deployment"]["spec"]["template"]["spec"]
    return found


def containers() -> list[Any]:
    return [*pod()["initContainers"], *pod()["containers"]]


def unit() -> dict[str, list[str]]:
    """Return each directive of the systemd unit and its values."""
    values: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", text("deploy/relay.service"), re.MULTILINE):
        values.setdefault(name, []).append(value)
    return values


def commands() -> dict[str, list[str]]:
    """Return every `relay` command line in these files, without `relay` itself, by its place."""
    (default,) = instructions("CMD")
    (started,) = unit()["ExecStart"]
    executable, *by_systemd = shlex.split(started)
    assert Path(executable).name == "relay"

    found = {"Dockerfile": json.loads(default), "relay.service": by_systemd}
    for process, command in processes().items():
        python, isolated, relay, *arguments = shlex.split(command)
        # Isolated, and by its path: nothing is imported from the working directory.
        assert [python, isolated, relay] == ["python", "-I", "relay/__main__.py"]
        found[f"Procfile {process}"] = arguments
    for name, service in relays().items():
        found[f"compose.yaml {name}"] = service.get("command", json.loads(default))
    for container in containers():
        found[f"kubernetes.yaml {container['name']}"] = container["args"]
    return found


@pytest.mark.parametrize(("place", "arguments"), commands().items())
def test_every_command_line_is_one_that_relay_takes(place: str, arguments: list[str]) -> None:
    name, *options = arguments
    command = main.commands.get(name)

    assert command is not None, f"{place}: relay has no command {name}"
    command.make_context(name, options, resilient_parsing=False)


@pytest.mark.parametrize(
    "place",
    [
        "Dockerfile",
        "Procfile web",
        "compose.yaml relay-a",
        "compose.yaml relay-b",
        "kubernetes.yaml relay",
    ],
)
def test_what_others_reach_listens_on_all_addresses(place: str) -> None:
    name, *options = commands()[place]
    context = main.commands[name].make_context(name, options)

    assert context.params["host"] == "0.0.0.0"  # noqa: S104 (it is reached from other hosts)
    assert context.params["port"] is None, "the port is $PORT's to say"


def test_every_variable_is_one_that_relay_reads() -> None:
    by_systemd = [line.partition("=")[0] for line in unit()["Environment"]]
    by_image = re.findall(r"(\w+)=", " ".join(instructions("ENV")))

    assert {*json.loads(text("app.json"))["env"]} <= KNOWN
    assert {*by_systemd} <= KNOWN
    assert {*by_image} <= KNOWN | {"PATH"}
    for service in relays().values():
        assert {*service["environment"]} <= KNOWN | {"PGPASSWORD"}  # libpq reads that one
    for container in containers():
        assert {variable["name"] for variable in container["env"]} <= KNOWN


def test_every_setting_can_be_given_at_the_button() -> None:
    """But for those that Heroku sets itself, and those of a file on a disk that it wipes."""
    assert {*json.loads(text("app.json"))["env"]} == KNOWN - HEROKUS - SQLITES


def test_every_setting_reaches_relay_in_compose() -> None:
    """By the file beside it, but for the few that follow from compose.yaml itself."""
    for service in relays().values():
        given = {
            name
            for name, value in service["environment"].items()
            if not str(value).startswith(f"${{{name}:?")
        }

        assert service["env_file"] == ".env"
        assert given == {"RELAY_OUTBOX_URL", "PORT", "PGPASSWORD"}
        assert service["environment"]["PORT"] == PORT


def test_every_setting_reaches_relay_in_kubernetes() -> None:
    for container in containers():
        given = {one["name"] for one in container["env"] if "value" in one}

        assert container["envFrom"] == [
            {"configMapRef": {"name": "relay", "optional": True}},
            {"secretRef": {"name": "relay"}},
        ]
        assert given == {"PORT"}


def test_every_setting_reaches_relay_under_systemd() -> None:
    """Of the same variable in both, systemd takes the one of the file."""
    assert unit()["EnvironmentFile"] == ["/etc/relay.env"]
    assert "UnsetEnvironment" not in unit()


def test_nobody_dumps_the_memory() -> None:
    assert unit()["LimitCORE"] == ["0"]
    assert [service["ulimits"] for service in services().values()] == [{"core": 0}] * len(
        services()
    )


def test_kubernetes_lets_in_webhooks_and_out_what_relay_needs() -> None:
    policy = manifests()["NetworkPolicy"]["spec"]
    labels = manifests()["Deployment"]["spec"]["template"]["metadata"]["labels"]
    (within,) = policy["ingress"]

    assert policy["podSelector"]["matchLabels"] == labels
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert within == {"ports": [{"port": "http", "protocol": "TCP"}]}
    assert [rule["ports"] for rule in policy["egress"]] == [
        [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}],
        [{"port": 5432, "protocol": "TCP"}],
        [{"port": 443, "protocol": "TCP"}],
    ]


def test_heroku_receives_and_forwards_in_one_dyno_and_migrates_at_a_release() -> None:
    found = {process: shlex.split(command)[3] for process, command in processes().items()}

    assert found == {"web": "serve", "worker": "forward", "release": "migrate"}
    assert "--no-forward" not in processes()["web"]


def test_the_button_asks_for_what_is_required_and_adds_a_database() -> None:
    app = json.loads(text("app.json"))

    assert {*app["env"]} >= REQUIRED
    assert app["env"]["RELAY_VERO_SECRET"]["generator"] == "secret"
    assert not [name for name, variable in app["env"].items() if "value" in variable]
    assert {name for name, it in app["env"].items() if it.get("required", True)} == REQUIRED
    assert all(variable["description"] for variable in app["env"].values())
    assert [addon["plan"] for addon in app["addons"]] == ["heroku-postgresql"]
    assert app["formation"].keys() <= processes().keys()
    assert app["buildpacks"] == [{"url": "heroku/python"}]
    assert 3 <= len(app["name"]) <= 30
    assert 0 < len(app["description"]) <= 140


def test_heroku_and_the_image_run_one_version_of_python_that_relay_supports() -> None:
    wanted = text(".python-version").strip()
    oldest = re.findall(r'requires-python = ">=([\d.]+)"', text("pyproject.toml"))
    (image,) = re.findall(r"^FROM python:(\S+)", text("Dockerfile"), re.MULTILINE)

    assert re.fullmatch(r"3\.\d+", wanted), "Heroku takes the newest patch of such a version"
    assert image.startswith(f"{wanted}.")
    assert re.fullmatch(r"\d+\.\d+\.\d+-slim-[a-z]+", image), "of a tag that does not move on"
    assert [int(part) for part in wanted.split(".")] >= [int(part) for part in oldest[0].split(".")]


def test_the_image_installs_only_what_the_lock_has_and_builds_none_of_it() -> None:
    joined = text("Dockerfile").replace("\\\n", " ")
    locked, itself = re.findall(r"pip [^&\n]* install ([^&\n]*)", joined)

    assert {"--require-hashes", "--only-binary"} <= {*locked.split()}
    assert "-r requirements.txt" in locked
    assert {"--no-index", "--no-deps", "--no-build-isolation"} <= {*itself.split()}


def test_the_image_runs_unprivileged_and_gets_signals_itself() -> None:
    (user,) = instructions("USER")
    (entrypoint,) = instructions("ENTRYPOINT")

    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    assert json.loads(entrypoint) == ["relay"]
    assert instructions("STOPSIGNAL") == ["SIGTERM"]
    assert instructions("WORKDIR") == ["/data"]  # where a relative relay.db goes
    assert json.loads(instructions("VOLUME")[0]) == ["/data"]


def test_the_image_has_all_that_its_build_copies() -> None:
    wanted = re.findall(
        r'^(?:readme|license-files) = \[?"([^"]+)"', text("pyproject.toml"), re.MULTILINE
    )
    sent = {
        line.removeprefix("!")
        for line in text(".dockerignore").splitlines()
        if line.startswith("!")
    }

    assert sent == {"relay", "pyproject.toml", "requirements.txt", *wanted}
    assert all((ROOT / name).exists() for name in sent)


def test_the_port_is_the_same_everywhere() -> None:
    environment = dict(re.findall(r"(\w+)=(\S+)", " ".join(instructions("ENV"))))
    (main_container,) = pod()["containers"]
    upstreams = re.findall(r"server (relay-\w+):(\d+)", text("deploy/nginx.conf"))

    assert environment["PORT"] == str(PORT)
    assert instructions("EXPOSE") == [str(PORT)]
    assert main_container["ports"] == [{"name": "http", "containerPort": PORT}]
    assert manifests()["Service"]["spec"]["ports"][0]["targetPort"] == "http"
    assert {*upstreams} == {(name, str(PORT)) for name in relays() if name != "migrate"}


def test_every_probe_asks_whether_the_process_lives() -> None:
    """Not /readyz: on hold it would take all away at once, although webhooks can be stored."""
    (main_container,) = pod()["containers"]
    probes = [
        main_container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")
    ]
    (image,) = instructions("HEALTHCHECK")

    assert probes == [{"path": "/healthz", "port": "http"}] * 3
    assert "'/healthz'" in image
    assert services()["proxy"]["healthcheck"]["test"][-1].endswith(":8080/healthz")
    assert "location = /healthz" in text("deploy/nginx.conf")


def test_relay_gets_more_than_its_20_seconds_to_stop() -> None:
    pause = pod()["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]

    assert pod()["terminationGracePeriodSeconds"] - pause > 20
    assert {service["stop_grace_period"] for service in relays().values()} == {"30s"}
    assert unit()["TimeoutStopSec"] == ["30"]
    assert unit()["KillMode"] == ["mixed"]


def test_kubernetes_keeps_two_and_sets_no_variables_of_its_own() -> None:
    found = manifests()
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]

    assert found["Deployment"]["spec"]["replicas"] == 2
    assert pod()["enableServiceLinks"] is False
    assert found["PodDisruptionBudget"]["spec"]["minAvailable"] == 1
    assert found["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert found["Service"]["spec"]["selector"] == labels


def test_kubernetes_confines_every_container() -> None:
    assert pod()["securityContext"]["runAsNonRoot"] is True
    assert pod()["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in containers():
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def test_kubernetes_starts_nothing_without_its_secrets() -> None:
    for container in containers():
        secret = {
            variable["name"]
            for variable in container["env"]
            if "optional" not in variable.get("valueFrom", {}).get("secretKeyRef", {"optional": 1})
        }

        assert secret == REQUIRED | {"DATABASE_URL"}


def test_compose_confines_every_service() -> None:
    for service in services().values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_compose_names_a_variable_that_is_missing() -> None:
    for service in relays().values():
        for name in REQUIRED | {"PGPASSWORD"}:
            assert re.fullmatch(r"\$\{\w+:\?[^}]+\}", service["environment"][name])


def test_compose_migrates_before_anything_is_received() -> None:
    waits = {
        name: service["depends_on"].get("migrate", {}).get("condition")
        for name, service in relays().items()
    }

    assert waits == {
        "migrate": None,
        "relay-a": "service_completed_successfully",
        "relay-b": "service_completed_successfully",
    }


def test_the_proxy_lets_relay_refuse_what_is_too_large_and_logs_no_path() -> None:
    config = text("deploy/nginx.conf")
    (limit,) = re.findall(r"client_max_body_size (\d+)m;", config)
    (log_format,) = re.findall(r"log_format pathless ([^;]+);", config)

    assert int(limit) * 2**20 > MAX_BODY_BYTES
    assert {*re.findall(r"\$(\w+)", log_format)}.isdisjoint(
        {"request", "request_uri", "uri", "document_uri", "request_filename", "http_referer"}
    )
    assert re.findall(r"access_log (\S+)(?: (\w+))?;", config) == [
        ("/dev/stdout", "pathless"),
        ("off", ""),
    ]
    assert re.findall(r"error_log .* (\w+);", config) == ["emerg"]


def test_systemd_keeps_the_outbox_in_the_state_directory() -> None:
    (environment,) = unit()["Environment"]
    (state,) = unit()["StateDirectory"]

    assert environment == f"RELAY_OUTBOX_URL=sqlite:////var/lib/{state}/relay.db"
    assert unit()["EnvironmentFile"] == ["/etc/relay.env"]
    assert unit()["Restart"] == ["always"]
    assert unit()["Type"] == ["notify"]
    assert int(unit()["WatchdogSec"][0]) > 10  # it is pinged once a second
    assert unit()["RestartPreventExitStatus"] == ["2"]  # a setting is missing or wrong
