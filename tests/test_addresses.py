from time import monotonic

import pytest

from relay import addresses

ANN = "ann@example.com"


@pytest.mark.parametrize("text", [ANN, "a=b&c@example.com", "böse@example", "'x'@[127.0.0.1]"])
def test_an_address_alone_is_an_address(text: str) -> None:
    assert addresses.is_address(text)


@pytest.mark.parametrize("text", ["", "ann", "@example.com", "ann@", f"Ann <{ANN}> ", f"a@{ANN}"])
def test_anything_else_is_none(text: str) -> None:
    assert not addresses.is_address(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (ANN, [ANN]),
        (f"Ann <{ANN}>", [ANN]),
        (f"Ann (Garden): \u200b{ANN}\ufeff, bob@example.com", [ANN, "bob@example.com"]),
        ("tag=ann&{x}@example.com", ["tag=ann&{x}@example.com"]),
        ("nobody", []),
    ],
)
def test_a_mailbox_field_gives_whole_addresses(text: str, found: list[str]) -> None:
    assert addresses.in_mailbox(text) == found


@pytest.mark.parametrize(
    "text",
    [
        f"Mail to {ANN}.",
        f"?to={ANN}&id=1",
        f'{{"email":"{ANN}",',
        "?to=ann%40example.com",
        "?to=ann%252540example.com",
        r"ann\u0040example.com",
        f"'{ANN}'",
    ],
)
def test_an_address_is_found_in_a_body_of_any_form(text: str) -> None:
    assert addresses.in_body(text) == [ANN]


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        (f"Mail to {ANN}", "Mail to ***"),
        (f"?to={ANN}", "***"),
        ('"Ann B"@example.com', "***"),
        ("ann%40example.com", "***"),
        (r"ann\u0040example.com", "***"),
        ("20260101120000.4f2a91c3@mail.example.com", "20260101120000.4f2a91c3@mail.example.com"),
        ("40 days", "40 days"),
    ],
)
def test_a_masked_text_holds_no_address_but_keeps_ids_of_emails(text: str, masked: str) -> None:
    assert addresses.mask(text) == masked
    assert addresses.masked({text: [text, {"a": text}], "n": 1}) == {
        masked: [masked, {"a": masked}],
        "n": 1,
    }


def test_a_masked_line_of_a_log_stays_readable() -> None:
    line = f"said (to:{ANN}) twice, ann%40example"

    assert addresses.mask_line(line) == "said (to:***) twice, ann%40example"


def test_an_address_is_named_in_any_case_or_by_its_digest() -> None:
    digest = addresses.digest(ANN.upper())

    assert digest == addresses.digest(ANN)
    assert len(digest) == 64
    assert all(addresses.matches(each, ANN) for each in (ANN, ANN.title(), digest, digest.upper()))
    assert not addresses.matches("bob@example.com", ANN)


@pytest.mark.parametrize(
    "text", ["a" * 200_000 + " a@b", "a@" * 100_000, '"' * 100_000 + "@", "%40" * 70_000]
)
def test_the_time_taken_grows_with_the_length_of_the_text(text: str) -> None:
    begun = monotonic()
    for work in (
        addresses.is_address,
        addresses.in_mailbox,
        addresses.in_body,
        addresses.mask,
        addresses.mask_line,
    ):
        work(text)

    assert monotonic() - begun < 10  # of the length's square it would be minutes
