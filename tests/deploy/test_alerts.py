"""Alerts and board in `deploy/` ask for metrics that relay has; alerts fire when they should."""

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # it comes without annotations
from prometheus_client import REGISTRY

from relay.metrics.definitions import ALL

DEPLOY = Path(__file__).parents[2] / "deploy"

# Relay's own metrics with their labels, those of prometheus_client about a process, and `up`, which
# Prometheus adds.
LABELS = {name: {*metric.labels, "le"} for metric in ALL for name in metric.series}
LABELS |= {sample.name: {*sample.labels} for f in REGISTRY.collect() for sample in f.samples}
LABELS |= {"up": set()}
OF_TARGETS = {"job", "instance"}

# In PromQL, what is no name of a metric: texts, durations, labels to group by, its own words.
_GROUPING = re.compile(r"\b(?:by|on|without|ignoring|group_left|group_right) *\(([^)]*)\)")
_NOT_NAMES = re.compile(
    r'"[^"]*"|\[[^]]*\]|\b(?:and|or|unless|offset|bool)\b|\b[a-z_]+(?= *\()|\b[\d.]+(?:e\d+)?\b'
)
_SELECTOR = re.compile(r"([a-zA-Z_:]\w*) *(?:\{([^}]*)\})?")


def rules() -> list[Any]:
    """Return the rule of each alert."""
    (group,) = yaml.safe_load((DEPLOY / "prometheus-alerts.yml").read_text("utf-8"))["groups"]
    found: list[Any] = group["rules"]
    return found


def alerts() -> dict[str, str]:
    """Return each alert's expression."""
    return {rule["alert"]: rule["expr"] for rule in rules()}


def board() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DEPLOY / "grafana.json").read_text("utf-8"))
    return found


def panels() -> list[Any]:
    return [panel for panel in board()["panels"] if panel["type"] != "row"]


def queries() -> dict[str, str]:
    """Return every expression of the board, by its place."""
    return {
        f"{panel['id']} {panel['title']} {target['refId']}": target["expr"]
        for panel in panels()
        for target in panel["targets"]
    }


def asked(expression: str) -> Mapping[str, set[str]]:
    """Return the metrics that an expression names, each with the labels that select it."""
    text = _NOT_NAMES.sub(" ", _GROUPING.sub(" ", expression))
    return {
        name: {*re.findall(r"(\w+) *[=!]", matchers)} for name, matchers in _SELECTOR.findall(text)
    }


@pytest.mark.parametrize(("place", "expression"), [*alerts().items(), *queries().items()])
def test_an_expression_asks_for_metrics_that_relay_has(place: str, expression: str) -> None:
    names = asked(expression)
    labels = {label for name in names for label in LABELS.get(name, ())} | OF_TARGETS
    grouped = {
        label.strip() for found in _GROUPING.findall(expression) for label in found.split(",")
    }

    assert names, place
    assert names.keys() <= LABELS.keys()
    assert all(selected <= LABELS[name] | OF_TARGETS for name, selected in names.items())
    assert grouped <= labels


def test_an_event_that_settings_ignore_raises_no_alarm() -> None:
    dead = [each for each in alerts().values() if "relay_events_dead_lettered" in each]

    assert dead
    assert all('reason!="ignored"' in expression for expression in dead)


@pytest.mark.parametrize(
    "alert", ["RelayNothingDelivered", "RelayEventsLate", "RelayOnHold", "RelayDeadLetters"]
)
def test_an_alert_names_the_destination(alert: str) -> None:
    (rule,) = [rule for rule in rules() if rule["alert"] == alert]

    assert all(
        "destination" in labels.split(", ")
        for labels in re.findall(r"by \(([^)]*)\)", rule["expr"])
    )
    assert "{{ $labels.destination }}" in rule["annotations"]["summary"]


def test_the_board_shows_the_destinations_that_are_chosen() -> None:
    chosen = 'destination=~"$destination"'
    unchosen = [
        place
        for place, expression in queries().items()
        if any("destination" in LABELS[name] for name in asked(expression))
        and chosen not in expression
    ]

    assert unchosen == []
    assert "destination" in [variable["name"] for variable in board()["templating"]["list"]]


def test_the_board_shows_every_metric_of_relay() -> None:
    shown = {name for expression in queries().values() for name in asked(expression)}

    assert [metric.name for metric in ALL if shown.isdisjoint(metric.series)] == []


def test_no_panel_covers_another() -> None:
    fields = [
        (x, y)
        for panel in board()["panels"]
        for place in [panel["gridPos"]]
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]

    assert len({panel["id"] for panel in board()["panels"]}) == len(board()["panels"])
    assert len({*fields}) == len(fields)
    assert {x for x, _ in fields} <= {*range(24)}


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Prometheus' own tool; in Debian it comes with the package `prometheus`."""
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed")
    return subprocess.run(  # noqa: S603 (found on the path)
        [found, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def test_prometheus_reads_the_alerts() -> None:
    done = promtool("check", "rules", str(DEPLOY / "prometheus-alerts.yml"))

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(alerts())} rules found" in done.stdout


def test_alerts_fire_when_they_should() -> None:
    done = promtool("test", "rules", str(DEPLOY / "prometheus-alerts.test.yml"))
    tests = (DEPLOY / "prometheus-alerts.test.yml").read_text("utf-8")

    assert done.returncode == 0, done.stdout + done.stderr
    assert [name for name in alerts() if name not in tests] == []


def test_prometheus_reads_the_expressions_of_the_board(tmp_path: Path) -> None:
    records = [
        {"record": f"board:{number}", "expr": expression.replace("$__rate_interval", "5m")}
        for number, expression in enumerate(queries().values())
    ]
    path = tmp_path / "board.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "board", "rules": records}]}))
    done = promtool("check", "rules", str(path))

    assert done.returncode == 0, done.stdout + done.stderr
