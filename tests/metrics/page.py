"""The page of metrics, as a reader gets it."""

from collections.abc import Mapping
from contextlib import closing
from http.client import HTTPConnection
from typing import Self

from prometheus_client.parser import text_string_to_metric_families

from tests.harness.processes import within


def fetch(port: int, path: str = "/metrics", **headers: str) -> tuple[int, Mapping[str, str], str]:
    """Return the status, headers and text that a reader gets."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, dict(response.headers), response.read().decode()


class Page:
    """One reading of the metrics."""

    def __init__(self, text: str) -> None:
        self.families = list(text_string_to_metric_families(text))

    @classmethod
    def of(cls, port: int) -> Self:
        """Read the page at the port."""
        status, _, text = fetch(port)
        assert status == 200
        return cls(text)

    def value(self, name: str, **labels: str) -> float | None:
        """Return the sum of the samples with this name and these labels; None if there is none."""
        found = [
            sample.value
            for family in self.families
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]
        return sum(found) if found else None


def comes_true(port: int, name: str, value: float, **labels: str) -> bool:
    return within(20, lambda: Page.of(port).value(name, **labels) == value)
