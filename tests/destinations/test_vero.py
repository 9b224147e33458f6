import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar
from urllib.parse import quote

import pytest
from hypothesis import given
from pydantic import ValidationError

from relay import __version__
from relay.destinations import Rendering
from relay.destinations.vero import VeroDestination
from relay.destinations.vero.settings import VeroDestinationSettings
from relay.errors import DestinationError, RefusedError, RejectedError, UnavailableError
from relay.events import Call
from tests.contracts.destination import Api, DestinationContract, dripping, serving
from tests.harness.calls import (
    AUTH_TOKEN,
    CALLS,
    IDENTIFY,
    NOON,
    TRACK,
    call,
    parsed,
    rendered,
    segment_source,
    vero_at,
)
from tests.harness.fakes import Answer
from tests.harness.processes import closed_port

OK = Answer(200, {"Content-Type": "application/json"}, b'{"status":200,"message":"Success."}')
GROUP = {"type": "group", "userId": "42", "groupId": "acme", "traits": {"size": 1e-7, "é": "\0"}}
ALIAS = {"type": "alias", "previousId": "41", "userId": "42"}
DELETION = {"type": "delete", "userId": "42"}


def call_or_track(document: dict[str, Any]) -> Call:
    result = parsed(document)
    return result if isinstance(result, Call) else call(TRACK)


class TestVero(DestinationContract):
    """See `DestinationContract`."""

    destination_class = VeroDestination
    meanings: ClassVar = {
        UnavailableError: [408, 425, 429, 500, 502, 503, 504, 507, 511, 529],
        RejectedError: [400, 413, 422],
        RefusedError: [
            *(401, 403, 404, 405, 410, 501, 505),
            *(402, 406, 407, 409, 418, 451, 499),  # not documented
            *(300, 301, 302, 303, 304, 307, 308),  # to nowhere
        ],
    }
    accepted = OK
    secrets = (AUTH_TOKEN, quote(AUTH_TOKEN, safe=""))
    retry_header = None
    event = call(TRACK)
    events = CALLS.map(call_or_track)
    takes_every_event = False
    growing = ("user_id", "email", "event", "properties")
    batch_size = 1

    def destination(
        self, url: str, *, account: str = AUTH_TOKEN, timeout_seconds: float = 30
    ) -> VeroDestination:
        """Return a Vero project."""
        return vero_at(url, account, timeout_seconds=timeout_seconds)

    def is_harmless(self, body: bytes) -> bool:
        """Return whether the request is about nobody."""
        document = json.loads(body)
        return bool(
            document.pop("auth_token") == AUTH_TOKEN
            and document == {"id": "relay-check", "remove": ["relay-check"]}
        )


# What is sent.


@pytest.fixture
def api() -> Iterator[Api]:
    with serving() as api:
        yield api


def messages(document: Mapping[str, Any], vero: VeroDestination) -> list[bytes]:
    rendering = rendered(document, vero)
    assert isinstance(rendering, Rendering)
    return [message.encoded for message in rendering.messages]


def send(api: Api, document: Mapping[str, Any], *answers: Answer) -> None:
    """Send a call's messages; the API gives the answers."""
    api.answers.extend(answers)
    vero = vero_at(api.url, VERO_DELETE="1")
    for message in messages(document, vero):
        vero.send([message])


def error(api: Api, document: Mapping[str, Any], *answers: Answer) -> DestinationError:
    with pytest.raises(DestinationError) as caught:
        send(api, document, *answers)
    return caught.value


def says(status: int, words: str, **headers: str) -> Answer:
    """Vero's own answer."""
    body = json.dumps({"status": status, "message": words}).encode()
    return Answer(status, {"Content-Type": "application/json", **headers}, body)


def test_a_request_has_the_token_in_its_body_only(api: Api) -> None:
    send(api, TRACK, OK)
    ((method, headers, body),) = api.requests

    assert (method, api.paths) == ("POST", ["/api/v2/events/track"])
    assert json.loads(body) == {
        "auth_token": AUTH_TOKEN,
        "event_name": "Seeds Ordered",
        "identity": {"id": "42", "email": "ann@example.com"},
        "data": {"sort": "tomato", "price": 3.5, "userAgent": "Mozilla/5.0"},
        "extras": {"created_at": 1_772_366_399, "source": "segment"},
    }
    assert AUTH_TOKEN not in str(headers)
    assert headers["User-Agent"] == f"relay/{__version__}"
    assert headers["Content-Type"] == headers["Accept"] == "application/json"


def test_a_token_with_quotes_is_sent_as_it_is(api: Api) -> None:
    api.answers.append(OK)
    vero = vero_at(api.url, 'a "token" \\ é')
    vero.send(messages(TRACK, vero))

    assert json.loads(api.requests[0][2])["auth_token"] == 'a "token" \\ é'


def test_json_is_ascii_and_values_stay_what_they_are(api: Api) -> None:
    body = (
        b'{"type":"identify","userId":"Zo\xc3\xab","traits":{"cart":"\\ud83d\\uded2","half":"\\ud83d",'
        b'"nul":"\\u0000","big":12345678901234567890123,"small":1e-7,"whole":9.0,"none":null}}'
    )
    vero = vero_at(api.url)
    read = segment_source().parse(body, NOON)
    assert isinstance(read, Call)
    rendering = vero.render(read, source="segment", message_id="segment-1", integrations={})
    assert isinstance(rendering, Rendering)
    api.answers.append(OK)
    vero.send([rendering.messages[0].encoded])
    (_, _, sent) = api.requests[0]

    assert sent.isascii()
    assert json.loads(sent)["data"] == {
        "cart": "🛒",
        "half": "\ufffd",
        "nul": "\0",
        "big": 12345678901234567890123,
        "small": 1e-7,
        "whole": 9.0,
        "none": None,
        "id": "Zoë",
    }


@given(CALLS.map(call_or_track))
def test_whatever_a_call_holds_is_sent_as_ascii(read: Call) -> None:
    rendering = vero_at().render(read, source="segment", message_id="m", integrations={})
    for message in rendering.messages if isinstance(rendering, Rendering) else ():
        text = json.dumps(json.loads(message.encoded), ensure_ascii=False)

        assert message.encoded.isascii()
        assert AUTH_TOKEN.encode() not in message.encoded
        assert not re.search("[\ud800-\udfff]", text)


def test_tags_are_a_message_of_their_own(api: Api) -> None:
    tags = {"id": "43", "action": "add", "values": ["niners"]}
    send(api, {**IDENTIFY, "integrations": {"Vero": {"tags": tags}}}, OK, OK)

    assert api.paths == ["/api/v2/users/track", "/api/v2/users/tags/edit"]
    assert json.loads(api.requests[1][2]) == {
        "auth_token": AUTH_TOKEN,
        "id": "43",
        "add": ["niners"],
    }


@pytest.mark.parametrize(
    "body", [b'{"status":200,"message":"Success."}', b"{}", b"", b' {"a":null} ']
)
@pytest.mark.parametrize("status", [200, 201, 202])
def test_an_object_or_nothing_is_an_acceptance(api: Api, status: int, body: bytes) -> None:
    send(api, TRACK, Answer(status, {"Content-Type": "application/json"}, body))

    assert len(api.requests) == 1


@pytest.mark.parametrize(
    "body", [b"<html>Log in", b"OK", b'{"status":200', b"\xff", b'"ok"', b"[]"]
)
def test_a_success_without_an_object_is_not_veros(api: Api, body: bytes) -> None:
    found = error(api, TRACK, Answer(200, {}, body))

    assert isinstance(found, RefusedError)
    assert str(found) == "200 OK without Vero's JSON"


@pytest.mark.parametrize(
    ("body", "meaning"),
    [
        (b'{"status":400,"message":"Bad request"}', RejectedError),
        (b'{"status":404,"message":"Not found"}', RejectedError),
        (b'{"status":401,"message":"Unauthorized"}', RefusedError),
        (b'{"status":503,"message":"Busy"}', UnavailableError),
        (b'{"success":false}', RefusedError),
        (b'{"status":"error"}', RefusedError),
        (b'{"status":["error"],"error":"broken"}', RefusedError),
    ],
)
def test_a_success_that_reports_a_failure_is_one(
    api: Api, body: bytes, meaning: type[DestinationError]
) -> None:
    found = error(api, TRACK, Answer(200, {}, body))

    assert type(found) is meaning
    assert str(found).startswith("200 OK, but it says ")


@pytest.mark.parametrize("status", [400, 404, 409, 413, 422])
def test_what_vero_refuses_a_call_with_is_kept_without_the_token(api: Api, status: int) -> None:
    spellings = (AUTH_TOKEN, quote(AUTH_TOKEN, safe=""), AUTH_TOKEN.replace("/", "\\/"))
    body = f'{{"message":"email is invalid ({" ".join(spellings)})"}}'
    found = error(api, IDENTIFY, Answer(status, {}, body.encode()))

    assert isinstance(found, RejectedError)
    assert "email is invalid (*** *** ***)" in found.text
    assert str(found)[:3] == str(status)
    assert "email" not in str(found)


@pytest.mark.parametrize(
    ("status", "meaning"),
    [
        (400, RefusedError),
        (422, RefusedError),
        (404, RefusedError),
        (409, RefusedError),
        (413, RejectedError),
    ],
)
def test_a_page_of_html_is_not_about_the_call(
    api: Api, status: int, meaning: type[DestinationError]
) -> None:
    """A gateway's 413 is, whatever it looks like."""
    page = Answer(status, {"Content-Type": "text/html"}, b"<html>nginx")

    assert type(error(api, TRACK, page)) is meaning


@pytest.mark.parametrize(
    ("answer", "affects_all"),
    [
        (says(429, "Slow down"), True),
        (says(408, "Too slow"), False),
        (says(425, "Too early"), False),
        (says(500, "Oops"), False),
        (says(503, "Busy"), False),
        (Answer(0), False),
    ],
)
def test_what_may_be_due_to_one_call_holds_only_that_one(
    api: Api, answer: Answer, *, affects_all: bool
) -> None:
    found = error(api, TRACK, answer)

    assert isinstance(found, UnavailableError)
    assert found.affects_all == affects_all
    assert found.too_many == affects_all
    assert found.may_have_arrived != affects_all


def test_a_host_that_cannot_be_reached_affects_all() -> None:
    for url in (f"http://127.0.0.1:{closed_port()}", "http://unused.invalid"):
        vero = vero_at(url)
        with pytest.raises(UnavailableError) as caught:
            vero.send(messages(TRACK, vero))

        assert caught.value.affects_all
        assert not caught.value.may_have_arrived


def test_a_call_that_is_never_answered_holds_only_itself() -> None:
    with dripping() as url:
        vero = vero_at(url, timeout_seconds=0.5)
        with pytest.raises(UnavailableError) as caught:
            vero.send(messages(TRACK, vero))

    assert str(caught.value) == "TimeoutError"
    assert not caught.value.affects_all
    assert caught.value.may_have_arrived


@pytest.mark.parametrize("status", [404, 405, 410])
def test_where_users_are_not_edited_a_group_is_tracked(api: Api, status: int) -> None:
    send(api, GROUP, Answer(status, {}, b"<html>"), OK)
    (edit, track) = (json.loads(body) for _, _, body in api.requests)

    assert api.paths == ["/api/v2/users/edit", "/api/v2/users/track"]
    assert [method for method, _, _ in api.requests] == ["PUT", "POST"]
    assert edit["changes"] == {"group": {"size": 1e-7, "é": "\0", "id": "acme"}}
    assert track == {"auth_token": AUTH_TOKEN, "id": "42", "data": edit["changes"]}


def test_the_answer_to_the_second_request_of_a_group_counts(api: Api) -> None:
    found = error(api, GROUP, says(404, "Not found"), says(400, "Bad request"))

    assert isinstance(found, RejectedError)
    assert str(found) == "400 Bad Request"


@pytest.mark.parametrize("answer", [says(400, "Bad"), says(401, "No"), says(503, "Busy")])
def test_where_users_are_edited_a_group_is_not_tracked(api: Api, answer: Answer) -> None:
    error(api, GROUP, answer)

    assert api.paths == ["/api/v2/users/edit"]


@pytest.mark.parametrize(
    ("document", "status", "done"),
    [
        (ALIAS, 400, True),
        (ALIAS, 404, True),
        (ALIAS, 422, False),
        (DELETION, 404, True),
        (DELETION, 400, False),
        (IDENTIFY, 400, False),
        (TRACK, 404, False),
    ],
)
def test_which_refusals_say_that_an_earlier_request_was_carried_out(
    api: Api, document: Mapping[str, Any], status: int, *, done: bool
) -> None:
    found = error(api, document, says(status, "no such user"))

    assert isinstance(found, RejectedError)
    assert found.done_if_repeated == done


# `relay check`.


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (OK, "takes the token"),
        (
            says(400, "Bad request"),
            "can be reached; it answers 400 Bad Request, so whether it takes the token is unknown",
        ),
        (
            says(404, "Not found"),
            "can be reached; it answers 404 Not Found, so whether it takes the token is unknown",
        ),
        (
            Answer(200, {}, b"<html>Log in"),
            "can be reached; it answers 200 OK, so whether it takes the token is unknown",
        ),
    ],
)
def test_connect_says_what_is_known_of_the_token(api: Api, answer: Answer, found: str) -> None:
    api.answers.append(answer)

    assert vero_at(api.url).connect() == found
    assert api.paths == ["/api/v2/users/tags/edit"]


@pytest.mark.parametrize("status", [401, 403])
def test_connect_fails_if_vero_does_not_take_the_token(api: Api, status: int) -> None:
    api.answers.append(says(status, f"no: {AUTH_TOKEN}"))
    with pytest.raises(RefusedError, match=f"^{status} .*: it does not take VERO_AUTH_TOKEN$"):
        vero_at(api.url).connect()


# Settings.


def test_without_a_token_it_is_not_configured() -> None:
    assert not VeroDestination(VeroDestinationSettings()).configured
    assert vero_at().configured


def test_its_limits_are_those_of_its_settings() -> None:
    limits = vero_at(VERO_RATE="7", VERO_CONNECTIONS="3").limits

    assert (limits.requests_per_second, limits.in_flight, limits.batch_messages) == (7, 3, 1)
    assert vero_at().limits.requests_per_second == 50
    assert vero_at().limits.in_flight == 8
    assert VeroDestination(VeroDestinationSettings()).limits.timeout_seconds == 10


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("https://api.example.com/", "https://api.example.com"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("https://gateway.example.com/vero", "https://gateway.example.com/vero"),
    ],
)
def test_the_host_is_a_base_url(host: str, url: str) -> None:
    assert vero_at(host).url == url


@pytest.mark.parametrize(
    ("host", "fault"),
    [
        ("api.getvero.com", "a base URL is needed, like https://api.getvero.com"),
        ("ftp://api.getvero.com", "a base URL is needed"),
        ("https://api.getvero.com?auth_token=x", "a base URL is needed"),
        ("https://user:password@api.getvero.com", "no user name or password"),
        ("https://api.getvero.com/api/v2/", "leave out /api/v2: relay adds it itself"),
    ],
)
def test_another_host_is_a_fault(host: str, fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        vero_at(host)


def test_a_token_in_the_clear_is_warned_of() -> None:
    (warning,) = vero_at("http://api.example.com").warnings()

    assert warning.startswith("VERO_HOST: over http:// to another machine the token and all calls")
    assert vero_at("http://localhost:3000").warnings() == []
