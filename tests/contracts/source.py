"""What every source does: each has a test class that inherits this suite."""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from random import Random
from typing import Any, ClassVar

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relay.errors import UnreadableError
from relay.events import Call, EmailEvent, ParseResult
from relay.sources import Source, Webhook, source_classes
from tests.harness.routes import segment_at

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)

ANY_TEXT = st.text() | st.text(st.characters(), max_size=3)
"""The second strategy has lone surrogates, which JSON can write and UTF-8 cannot."""
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT
VALUES = st.recursive(
    SCALARS,
    lambda value: st.lists(value, max_size=4) | st.dictionaries(ANY_TEXT, value, max_size=4),
    max_leaves=12,
)

_SEGMENT = segment_at("https://example.com", "write-key")

# The time that an example takes only shows how busy the machine is.
_law = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


class SourceContract:
    """A source: see `relay.sources.Source`.

    Attributes:
        source_class: the class to test.
        documents: webhooks that become events, all different.
        shaped: objects with the source's own fields and any values in them.
    """

    source_class: ClassVar[type[Source]]
    documents: ClassVar[Sequence[Mapping[str, Any]]]
    shaped: ClassVar[st.SearchStrategy[dict[str, Any]]]

    credential = "secret"
    """The setting that holds the secret."""
    first = "first-secret-0123456789"
    second = "second-secret-0123456789"

    def source(self, *secrets: str) -> Source:
        """Return a source that is configured with the secrets."""
        values = {self.credential: ",".join(secrets)} if secrets else {}
        return self.source_class(self.source_class.settings_model(**values))

    def webhook(self, secret: str) -> Webhook:
        """Return a webhook that carries the secret."""
        return Webhook(secret, [], b"", NOON)

    def parsed(self, body: bytes) -> ParseResult:
        """Parse a body received at noon."""
        return self.source(self.first).parse(body, NOON)

    def dedupe_key(self, document: object) -> tuple[str | None, ...] | None:
        """Return the dedupe key of the document's event; None if it is no event."""
        result = self.parsed(json.dumps(document).encode())
        return result.dedupe_key if isinstance(result, EmailEvent | Call) else None

    def test_it_is_found_by_its_name(self) -> None:
        name = self.source_class.name

        assert source_classes()[name] is self.source_class
        assert name.isidentifier()
        assert name.islower()

    def test_its_secret_is_accepted(self) -> None:
        source = self.source(self.first)

        assert source.configured
        assert source.authenticate(self.webhook(self.first))

    @pytest.mark.parametrize("secret", ["", first[:-1], first + "0", first.upper(), "é" * 20, "\0"])
    def test_another_secret_is_refused(self, secret: str) -> None:
        assert not self.source(self.first).authenticate(self.webhook(secret))

    def test_a_webhook_without_credentials_is_refused(self) -> None:
        assert not self.source(self.first).authenticate(Webhook(None, [], b"{}", NOON))

    def test_while_secrets_rotate_each_of_them_is_accepted(self) -> None:
        source = self.source(self.first, self.second)

        assert source.authenticate(self.webhook(self.first))
        assert source.authenticate(self.webhook(self.second))
        assert not source.authenticate(self.webhook(f"{self.first},{self.second}"))

    @pytest.mark.parametrize("secret", ["", first])
    def test_without_a_secret_it_is_not_configured_and_accepts_nothing(self, secret: str) -> None:
        source = self.source()

        assert not source.configured
        assert not source.authenticate(self.webhook(secret))

    def test_any_bytes_are_parsed_lawfully(self) -> None:
        @_law
        @given(st.binary())
        def check(body: bytes) -> None:
            _assert_lawful(self.parsed(body))

        check()

    def test_any_object_is_parsed_lawfully(self) -> None:
        @_law
        @given(self.shaped | st.dictionaries(ANY_TEXT, VALUES))
        def check(document: dict[str, Any]) -> None:
            _assert_lawful(self.parsed(json.dumps(document).encode()))

        check()

    def test_any_bytes_are_split_lawfully(self) -> None:
        source = self.source(self.first)

        @_law
        @given(st.binary() | self.shaped.map(lambda document: json.dumps(document).encode()))
        def check(body: bytes) -> None:
            try:
                bodies = source.split(body)
            except UnreadableError:
                return
            assert all(type(each) is bytes for each in bodies)
            assert list(source.split(body)) == list(bodies)

        check()

    def test_the_body_of_one_event_is_stored_as_it_came(self) -> None:
        for document in self.documents:
            body = json.dumps(document, indent=1).encode()

            assert list(self.source(self.first).split(body)) == [body]
            assert list(self.source(self.first).split_line(body)) == [body]

    def test_its_events_are_counted_by_one_of_its_collections(self) -> None:
        events = [self.parsed(json.dumps(document).encode()) for document in self.documents]
        collections = [each.collection for each in events if isinstance(each, EmailEvent | Call)]

        assert collections
        assert {*collections} <= {*self.source().collections}

    def test_the_same_body_gives_the_same_result(self) -> None:
        @_law
        @given(self.shaped)
        def check(document: dict[str, Any]) -> None:
            body = json.dumps(document).encode()

            assert self.parsed(body) == self.parsed(body)

        check()

    def test_the_order_of_keys_changes_nothing(self) -> None:
        @_law
        @given(self.shaped, st.randoms(use_true_random=False))
        def check(document: dict[str, Any], random: Random) -> None:
            assert self.dedupe_key(_shuffled(document, random)) == self.dedupe_key(document)

        check()

    def test_different_events_have_different_dedupe_keys(self) -> None:
        keys = [self.dedupe_key(document) for document in self.documents]

        assert all(keys)
        assert len(set(keys)) == len(keys)

    def test_a_reason_or_a_detail_holds_nothing_private(self) -> None:
        private = "somebody@example.com"
        broken = [
            other for document in self.documents for other in _each_replaced(document, private)
        ]
        results = [self.parsed(json.dumps(document).encode()) for document in broken]
        others = [result for result in results if not isinstance(result, EmailEvent | Call)]

        assert others
        assert all(private not in repr(result) for result in others)


def _assert_lawful(result: ParseResult) -> None:
    """Assert that it can be stored, logged and sent."""
    json.dumps(msgspec.to_builtins(result), ensure_ascii=False).encode()
    if isinstance(result, Call):
        ids = (*result.people, result.anonymous_id, result.previous_id, result.group_id)
        texts = [text for text in (*ids, result.email, result.event) if text is not None]

        assert all(type(text) is str and text and text == text.strip() for text in texts)
    if isinstance(result, EmailEvent):
        optional = [result.user_id, result.email, result.user_agent]
        texts = [*result.properties.values(), *(text for text in optional if text is not None)]

        assert all(type(text) is str and text and text == text.strip() for text in texts)
        assert result.user_id or result.email
    if isinstance(result, EmailEvent | Call):
        assert result.occurred_at.tzinfo is UTC
        assert len(_SEGMENT.message_id("p" * 20, result.dedupe_key, result.reported_at)) <= 100


def _shuffled(value: object, random: Random) -> object:
    if isinstance(value, list):
        return [_shuffled(member, random) for member in value]
    if isinstance(value, dict):
        items = [(key, _shuffled(member, random)) for key, member in value.items()]
        random.shuffle(items)
        return dict(items)
    return value


def _each_replaced(document: Mapping[str, Any], value: object) -> Iterator[dict[str, Any]]:
    """Return the document once for each of its values, with another value in its place."""
    for key, own in document.items():
        yield {**document, key: value}
        if isinstance(own, Mapping):
            yield from ({**document, key: inner} for inner in _each_replaced(own, value))
