import base64

import pytest
from pydantic import SecretStr

from relay.auth import SecretCheck, basic_credentials, bearer_token


def basic(credentials: bytes, scheme: bytes = b"Basic") -> bytes:
    return scheme + b" " + base64.b64encode(credentials)


def test_each_configured_secret_is_accepted() -> None:
    check = SecretCheck([SecretStr("the one that goes"), SecretStr("the one that comes")])
    candidates = [b"the one that goes", b"the one that comes", b"the one", b""]

    assert [check.accepts(each) for each in candidates] == [True, True, False, False]


def test_without_a_secret_nothing_is_accepted() -> None:
    assert not SecretCheck([]).accepts(b"")


@pytest.mark.parametrize(
    ("credentials", "expected"),
    [
        (b"ana:letmein", (b"ana", b"letmein")),
        (b":letmein", (b"", b"letmein")),
        (b"ana:let:me:in", (b"ana", b"let:me:in")),
        (b"ana", (b"ana", b"")),
        ("ana:schlüssel".encode(), (b"ana", "schlüssel".encode())),
        (b"", (b"", b"")),
    ],
)
@pytest.mark.parametrize("scheme", [b"Basic", b"basic", b"BASIC"])
def test_basic_credentials_are_read(
    scheme: bytes, credentials: bytes, expected: tuple[bytes, bytes]
) -> None:
    assert basic_credentials(basic(credentials, scheme)) == expected


@pytest.mark.parametrize(
    "authorization",
    [
        b"",
        b"Bearer abc",
        b"Basic ???",
        b"Basic YW5h\xfc",
        b"BasicYW5hOmE=",
        b"Basic YQ",
        b"Digest a=b",
    ],
)
def test_what_is_not_basic_has_no_basic_credentials(authorization: bytes) -> None:
    assert basic_credentials(authorization) is None


@pytest.mark.parametrize(
    ("authorization", "token"),
    [
        (b"Bearer abc", b"abc"),
        (b"bearer  abc ", b"abc"),
        (b"BEARER a b", b"a b"),
        (b"Bearer", b""),
        (b"Bearer \xfc", b"\xfc"),
        (b"Basic abc", None),
        (b"abc", None),
        (b"", None),
    ],
)
def test_a_bearer_token_is_read(authorization: bytes, token: bytes | None) -> None:
    assert bearer_token(authorization) == token
