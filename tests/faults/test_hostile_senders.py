import re
import socket
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from http.client import HTTPResponse
from pathlib import Path
from secrets import token_hex
from urllib.parse import quote

import pytest

from relay.receiver.body import MAX_BODY_BYTES
from tests.harness.processes import PATH, SECRET, RelayProcess, ask, read_reply, within
from tests.harness.stores import run_sql, stored
from tests.harness.webhooks import opened

NOBODY = "http://127.0.0.1:1"
MEBIBYTE = 2**20
GUESS = "/webhooks/vero/a-guess-at-the-secret"


def request(body: bytes, *headers: str, path: str = PATH) -> bytes:
    """Return a webhook as it is sent, without a length except in the headers given."""
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: relay", *headers, "", ""]).encode() + body


def whole(body: bytes, *headers: str, path: str = PATH) -> bytes:
    return request(body, f"Content-Length: {len(body)}", *headers, path=path)


class WatchedRelay(RelayProcess):
    """A relay whose memory is watched from outside."""

    def most_memory(self) -> int:
        """Return the largest resident memory it ever had, in bytes."""
        status = Path(f"/proc/{self._process.pid}/status").read_text().split()
        return int(status[status.index("VmHWM:") + 1]) * 1024


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WatchedRelay]:
    outbox = tmp_path_factory.mktemp("hostile") / "relay.db"
    with WatchedRelay(outbox, NOBODY, RELAY_LOG_LEVEL="debug") as relay:
        yield relay


@pytest.fixture
def relay(shared: WatchedRelay) -> WatchedRelay:
    """Return the shared relay, with nothing stored."""
    run_sql(shared.outbox, "DELETE FROM entries")
    return shared


def converse(relay: RelayProcess, sent: bytes, *, ends: bool = False) -> list[int]:
    """Return the status of each answer until relay closes the connection.

    Args:
        relay: who is spoken to.
        sent: what is sent to it.
        ends: whether the sender then says that it has no more to send.
    """
    answers = b""
    with relay.connect() as sender, suppress(ConnectionError):
        sender.sendall(sent)
        if ends:
            sender.shutdown(socket.SHUT_WR)
        while piece := sender.recv(65_536):
            answers += piece
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", answers)]


def bodies(relay: RelayProcess) -> list[bytes]:
    """Return the bodies of all entries."""
    return [entry.body for entry in stored(relay.outbox)]


EVENT = opened("event")
SMUGGLED = whole(opened("smuggled"))
LENGTH = f"Content-Length: {len(EVENT)}"
CHUNKED = "Transfer-Encoding: chunked"
CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(EVENT), EVENT)


LENGTHS = ["", "-1", "+9", "1_0", "0x10", "9, 9", "9 9", "1e2", "9" * 20]
SIZES = [b"", b" ", b"-1", b"0x9", b"g", b"9" * 20]
CODINGS = [", identity", ", chunked", ";q=1", "x", "\r\nTransfer-Encoding: identity"]
BREAKS = ["\0", "\r", "\n ", "\r\n ", "\x1b"]
DOUBTFUL = {
    **{f"length {value}": request(EVENT, f"Content-Length: {value}") for value in LENGTHS},
    **{f"size {value!r}": request(value + CHUNKS[2:], CHUNKED) for value in SIZES},
    **{f"coding {value!r}": request(CHUNKS, CHUNKED + value) for value in CODINGS},
    **{f"break {value!r}": request(EVENT, LENGTH, f"X: a{value}b") for value in BREAKS},
    "length twice": request(EVENT, LENGTH, LENGTH),
    "another length before": request(EVENT, "Content-Length: 5", LENGTH),
    "another length behind": request(EVENT, LENGTH, "Content-Length: 5"),
    "length and chunks": request(CHUNKS, LENGTH, CHUNKED),
    "chunks and length": request(CHUNKS, CHUNKED, "Content-Length: 5"),
    "blank before colon": request(CHUNKS, "Transfer-Encoding : chunked"),
    "tab before coding": request(CHUNKS, "Transfer-Encoding: \vchunked"),
    "chunks in lines of LF": request(CHUNKS.replace(b"\r\n", b"\n"), CHUNKED),
    "longer chunk than said": request(b"5\r\n" + EVENT + b"\r\n0\r\n\r\n", CHUNKED),
    "line without colon": request(EVENT, LENGTH, "no header"),
    "lines of LF": request(EVENT, LENGTH).replace(b"\r\n", b"\n"),
    "version": request(EVENT, LENGTH).replace(b"1.1", b"9.9"),
    "method": request(EVENT, LENGTH).replace(b"POST", b"POST\0"),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
}


@pytest.mark.parametrize("sent", DOUBTFUL.values(), ids=DOUBTFUL)
def test_an_ambiguously_framed_request_is_refused_with_all_that_follows(
    relay: WatchedRelay, sent: bytes
) -> None:
    assert converse(relay, sent + SMUGGLED) == [400]
    assert bodies(relay) == []


UPGRADING = ("Connection: Upgrade, close", "Upgrade: h2c")
TRAILED = b"2\r\n{}\r\n0\r\nAuthorization: Bearer %b\r\n\r\n" % SECRET.encode()
# What is sent, what is answered, and the bodies that are kept.
LIES: dict[str, tuple[bytes, list[int], list[bytes]]] = {
    "shorter than the body": (request(EVENT, "Content-Length: 20"), [400], [EVENT[:20]]),
    "shorter than the body, of which the rest is a request": (
        *(request(b"{}" + whole(EVENT, path=GUESS), "Content-Length: 2"), [200, 401]),
        [b"{}"],
    ),
    "longer than the body": (request(EVENT, "Content-Length: 9999"), [], []),
    "a chunk longer than the body": (request(b"ffff\r\n" + EVENT, CHUNKED), [], []),
    "a body that is a request to upgrade to": (whole(SMUGGLED, *UPGRADING), [400], [SMUGGLED]),
    "more after the last request": (whole(EVENT, "Connection: close") + SMUGGLED, [200], [EVENT]),
    "a trailer that would do as the next request's header": (
        *(request(TRAILED + whole(EVENT, path="/webhooks/vero"), CHUNKED), [200, 401]),
        [b"{}"],
    ),
}


@pytest.mark.parametrize(("sent", "statuses", "kept"), LIES.values(), ids=LIES)
def test_a_wrong_length_stores_nothing_more(
    relay: WatchedRelay, sent: bytes, statuses: list[int], kept: list[bytes]
) -> None:
    waits_for_more = not statuses

    assert converse(relay, sent, ends=waits_for_more) == statuses
    assert within(5, lambda: bodies(relay) == kept)
    assert relay.post(opened("well")).content["status"] == "accepted"
    assert bodies(relay) == [*kept, opened("well")]


def test_a_head_may_end_and_another_begin_in_a_large_piece(relay: WatchedRelay) -> None:
    large, last = whole(EVENT.ljust(100_000)), whole(EVENT, "Connection: close")
    replies = []
    with relay.connect() as sender:
        sender.sendall(large[:5])
        relay.ask("GET", "/healthz")  # by now it has been read
        for piece in (large[5:] + last[:5], last[5:]):
            sender.sendall(piece)
            response = HTTPResponse(sender)
            response.begin()
            replies.append(read_reply(response))

    assert [reply.content["status"] for reply in replies] == ["accepted", "duplicate"]


@pytest.mark.parametrize("path", [PATH, GUESS, "/nowhere"])
@pytest.mark.parametrize("unit", [b"x" * 2**16, b"X: 1\r\n" * 10_000], ids=["one line", "lines"])
def test_an_endless_trailer_is_refused(relay: WatchedRelay, path: str, unit: bytes) -> None:
    sent = 0
    with relay.connect() as sender, suppress(ConnectionError):
        sender.sendall(request(b"2\r\n{}\r\n0\r\nX: ", CHUNKED, path=path))
        while sent < 32 * MEBIBYTE:
            sender.sendall(unit)
            sent += len(unit)

    assert sent < 32 * MEBIBYTE
    assert relay.ask("GET", "/healthz").status == 200


def bomb(size: int) -> bytes:
    """Return so many bytes of blanks, compressed to a thousandth of that."""
    squeeze = zlib.compressobj(9, wbits=31)
    return (
        b"".join(squeeze.compress(b" " * MEBIBYTE) for _ in range(size // MEBIBYTE))
        + squeeze.flush()
    )


def test_a_compressed_body_is_decompressed_within_the_limits(relay: WatchedRelay) -> None:
    body = bomb(512 * MEBIBYTE)
    before = relay.most_memory()
    replies = [relay.post(body, {"Content-Encoding": "gzip"}) for _ in range(10)]
    unsaid = relay.post(body)

    assert len(body) < MAX_BODY_BYTES
    assert {reply.status for reply in replies} == {413}
    assert (unsaid.status, unsaid.content["reason"]) == (400, "unreadable")
    assert bodies(relay) == [body]
    assert relay.most_memory() - before < 100 * MEBIBYTE


def test_pipelined_requests_take_bounded_memory(relay: WatchedRelay) -> None:
    before = relay.most_memory()
    with ExitStack() as stack:
        senders = [stack.enter_context(relay.connect()) for _ in range(10)]
        for sender in senders:
            with suppress(ConnectionError):
                sender.sendall(b"GET / HTTP/1.1\r\n\r\n" * 14_000)
        answers = [sender.recv(12) for sender in senders]
        well = relay.post(EVENT)

    assert all(answer.startswith(b"HTTP/1.1 4") for answer in answers)
    assert well.content["status"] == "accepted"
    assert relay.most_memory() - before < 50 * MEBIBYTE


UNICODE = SECRET.replace("a", "\N{CYRILLIC SMALL LETTER A}")
WRONG = [
    "",
    "%00",
    SECRET[:-1],
    f"{SECRET}s",
    f"x{SECRET}",
    SECRET.upper(),
    f"{SECRET}%00",
    "%FF" * 9,
]
WRONG += [f"{SECRET}%20", quote(UNICODE), quote(quote("/")) + SECRET, f"%2561{SECRET[1:]}"]
WRONG += [f"{SECRET}/..", f"../vero/{SECRET}", f"/{SECRET}", "x" * 50_000]


def test_no_guess_at_the_secret_is_right(
    relay: WatchedRelay, times: Callable[[int, int], int]
) -> None:
    """Each follows an accepted request on its connection: every request needs its own secret."""
    token = token_hex(8)
    guesses = WRONG + [f"{token}-{number}" for number in range(times(1_000, 10_000))]
    statuses: Counter[tuple[int, int]] = Counter()
    for guess in guesses:
        with closing(relay.connection("127.0.0.1", relay.port, timeout=30)) as connection:
            well = ask(connection, "POST", PATH, opened("well"))
            reply = ask(connection, "POST", f"/webhooks/vero/{guess}", opened(guess))
        statuses[well.status, reply.status] += 1

    assert statuses == {(200, 401): len(guesses)}
    assert bodies(relay) == [opened("well")]
    assert not [line for line in relay.log() if token in str(line) or SECRET[:-1] in str(line)]


def test_after_a_wrong_guess_nothing_more_is_read_from_its_connection(relay: WatchedRelay) -> None:
    guesses = b"".join(whole(EVENT, path=f"/webhooks/vero/{number}") for number in range(50))

    assert converse(relay, guesses + whole(EVENT)) == [401]
    assert bodies(relay) == []
