"""What is a body, and how a wrong one is named."""

import json

import pytest

from app.errors import BadJson, InvalidField
from app.web.bodies import Body, Empty, decode_body


class Credentials(Body, frozen=True):
    email: str
    password: str


def test_a_body_becomes_its_class():
    """And no body at all is an empty one."""
    body = decode_body(b' {"email": "ann@example.org", "password": "\\u00e4"} ', Credentials)
    assert (body.email, body.password) == ("ann@example.org", "ä")
    assert decode_body(b"", Empty) == decode_body(b"{}", Empty) == Empty()


@pytest.mark.parametrize(
    "data",
    [
        b"{",
        b"nothing",
        b"{'email': 1}",
        b'{"email": "a", "email": "a", "password": "b"}',
        b'{"email": {"a": 1, "a": 2}, "password": "b"}',
        b"[" * 100_000,
        b'{"email":' * 100_000,
        b'{"email": ' + b"[" * 100_000 + b"]" * 100_000 + b', "password": ""}',
        b'{"email": ' + b"9" * 5000 + b', "password": ""}',
        b'{"email": NaN, "password": ""}',
        b'{"email": -Infinity, "password": ""}',
        b'{"email": 1e999, "password": ""}',
        b'{"email": "\xff", "password": ""}',
        b'\xef\xbb\xbf{"email": "a", "password": "b"}',
        '{"email": "a", "password": "b"}'.encode("utf-16"),
        b'{"email": "a", "password": "b"} {}',
        b'{"email": "\x00", "password": "b"}',
    ],
    ids=lambda data: repr(data[:30]),
)
def test_what_is_not_strict_json_is_bad_json(data):
    """What parsers read differently, or could be made to choke on, is refused as a whole."""
    with pytest.raises(BadJson):
        decode_body(data, Credentials)


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ({"email": "a"}, "password"),
        ({"email": "a", "password": "b", "user_id": "c"}, "user_id"),
        ({"email": "a", "password": "b", "": "c"}, ""),
        ({"email": 1, "password": "b"}, "email"),
        ({"email": "a", "password": None}, "password"),
        ({"email": ["a"], "password": "b"}, "email"),
        ({"email": True, "password": "b"}, "email"),
        ({"email": "a", "password": "nul\0"}, "password"),
        ({"email": "\ud800", "password": "b"}, "email"),
        ([], ""),
        ("ann", ""),
        (None, ""),
        (7, ""),
    ],
)
def test_a_wrong_field_is_named(document, field):
    """Missing, unknown, of the wrong type, or text that cannot be stored."""
    with pytest.raises(InvalidField) as caught:
        decode_body(json.dumps(document).encode(), Credentials)
    assert caught.value.field == field


def test_a_body_of_nothing_takes_nothing():
    """A user id smuggled into a call without a body is refused too."""
    with pytest.raises(InvalidField) as caught:
        decode_body(b'{"user_id": "x"}', Empty)
    assert caught.value.field == "user_id"
