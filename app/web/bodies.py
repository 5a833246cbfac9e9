"""JSON bodies into classes, and back. What is strict about them is stated in `app.wire.codec`."""

from __future__ import annotations

import re
from typing import Any, Final, TypeVar

import msgspec
from quart import Response, request
from quart_trio.wrappers import TrioResponse

from app.errors import BadJson, InvalidField, UnsupportedEncoding
from app.wire.codec import BadFrame, BadJSON, convert, decode_json, encode_json


class Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of every request body: a field that it does not name is refused, `user_id` first of all."""


class Empty(Body, frozen=True):
    """The body of a call that takes none."""


B = TypeVar("B", bound=Body)

# msgspec and the codec end their messages with the place: "... - at `$.email`", "... field `email`".
_PLACE: Final = re.compile(r"(?:at `\$\.?|field `)([^`]*)`$")


def decode_body(data: bytes, target: type[B]) -> B:
    """Return `data` as `target`; no bytes at all stand for an empty object.

    Raises:
        BadJson: not one strict JSON document.
        InvalidField: a field is missing, unknown, of the wrong type, or holds text that cannot be stored.
    """
    try:
        return convert(decode_json(data or b"{}"), target)
    except BadJSON as error:
        raise BadJson(str(error)) from error
    except BadFrame as error:
        place = _PLACE.search(str(error))
        raise InvalidField(place[1] if place else "", str(error)) from error


async def read_body(target: type[B]) -> B:
    """Return the body of the current request as `target`, whatever its Content-Type says: it is always JSON.

    Raises:
        UnsupportedEncoding: it is compressed.
        BadJson, InvalidField: as `decode_body` does.
    """
    encoding = request.headers.get("Content-Encoding", "identity")
    if encoding.strip().lower() != "identity":
        raise UnsupportedEncoding(f"a body is sent as it is, not as {encoding[:32]}")
    data = await request.get_data(cache=False, as_text=False, parse_form_data=False)
    return decode_body(data, target)


def json_response(document: Any, status: int = 200) -> Response:
    """Return `document`, a mapping or an attrs or msgspec instance, as a JSON response."""
    return Response(encode_json(document), status, content_type="application/json")


def no_content() -> Response:
    """Return 204 without a body. Quart's own empty response asks for an asyncio loop."""
    response = TrioResponse(status=204)
    del response.headers["Content-Type"]
    return response
