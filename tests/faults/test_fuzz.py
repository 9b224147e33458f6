import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.contracts.source import VALUES
from tests.faults.fuzz import DOCUMENT, check
from tests.harness.fakes import SegmentServer
from tests.harness.processes import RelayProcess, within
from tests.harness.stores import SqliteStore, pending

ROOT = Path(__file__).parents[2]
TYPES = ["sent", "delivered", "opened", "clicked", "unsubscribed", "bounced", "complained"]
PIECES = [b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\", b"\0", b"\xff", b"\\u0000", b"\\ud800"]
PIECES += [b"null", b"1e400", b"NaN", b"-", b"9" * 5000, b"\xef\xbb\xbf", b"\xe2\x80\xa8"]
ODD = [" ", "\u2003reader@example.com\u2029", "\0", 10**4000, -0.0, 1e308, [[[" "]]], "0001-01-01"]
_patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def changed(draw: st.DrawFn, document: dict[str, Any]) -> dict[str, Any]:
    """The document, with anything in some fields and without others."""
    made: dict[str, Any] = {}
    for key, value in document.items():
        fate = draw(st.integers(0, 9))
        if fate < 2:
            made[key] = draw(VALUES | st.sampled_from(ODD))
        elif fate < 9:
            made[key] = draw(changed(value)) if isinstance(value, dict) else value
    return made


@st.composite
def spliced(draw: st.DrawFn) -> bytes:
    """The document's bytes, with others in place of some."""
    body = json.dumps(DOCUMENT).encode()
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(body)))
        piece = draw(st.sampled_from(PIECES) | st.binary(max_size=8))
        body = body[:start] + piece + body[start + draw(st.integers(0, 8)) :]
    return body


DOCUMENTS = st.builds(
    lambda document, kind: json.dumps({**document, "type": kind, f"{kind}_at": 1}).encode(),
    changed(DOCUMENT),
    st.sampled_from(TYPES),
)
BODIES = st.one_of(
    DOCUMENTS, changed(DOCUMENT).map(lambda made: json.dumps(made).encode()), spliced(), st.binary()
)


def test_whatever_a_body_holds_relay_makes_something_lawful_of_it(
    times: Callable[[int, int], int],
) -> None:
    @settings(_patient, max_examples=times(150, 10_000))
    @given(BODIES)
    @example(json.dumps(DOCUMENT).encode())
    def read(body: bytes) -> None:
        check(body)

    read()


def test_whatever_is_posted_the_process_answers_and_forwards_what_it_accepts(
    sqlite_store: SqliteStore, times: Callable[[int, int], int]
) -> None:
    accepted: set[str] = set()

    @settings(_patient, max_examples=times(150, 3_000))
    @given(BODIES)
    def post(body: bytes) -> None:
        reply = relay.post(body)
        if reply.content["status"] == "accepted":
            accepted.add(reply.content["message_id"])

        assert reply.status == (400 if reply.content.get("reason") == "unreadable" else 200)

    with SegmentServer() as server, RelayProcess(sqlite_store, server.url) as relay:
        post()
        forwarded = within(60, lambda: pending(relay.store) == 0)
        arrived = {message["messageId"] for message in server.accepted}
    oversized = {e.message_id for e in sqlite_store.stored() if e.reason == "oversized"}

    assert forwarded
    assert len(accepted) > times(5, 20)
    assert accepted == arrived | oversized
    assert not {entry.reason for entry in sqlite_store.stored()} & {"poison", "rejected"}


@pytest.mark.skipif(find_spec("atheris") is None, reason="atheris is not installed")
def test_a_search_guided_by_coverage_finds_nothing(
    tmp_path: Path, times: Callable[[int, int], int]
) -> None:
    seconds = times(20, 600)
    search = subprocess.run(  # noqa: S603 (its own Python and a number)
        [sys.executable, "-m", "tests.faults.fuzz", "--seconds", str(seconds)],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        timeout=seconds + 60,
        check=False,
    )

    assert search.returncode == 0, search.stdout + search.stderr[-5000:]
