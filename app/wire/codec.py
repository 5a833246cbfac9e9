"""Bytes to frames and back. No I/O, no state.

Strictness is stated here once, for frames and for HTTP bodies: a JSON document has no duplicate keys, no
NaN or Infinity, no integer of more than `MAX_INTEGER_DIGITS` digits and no deep nesting; text has no NUL and
no lone surrogate. msgspec alone lets duplicate keys pass, so the document is read by the standard library,
whose hooks see every pair, and then converted to its class by msgspec, whose messages name the field.
"""

from __future__ import annotations

import json
from typing import Any, Final, TypeVar

import msgspec

from app.wire.messages import AnyClientFrame, ServerFrame

T = TypeVar("T")

MAX_INTEGER_DIGITS: Final = 18
MAX_JSON_DEPTH: Final = 64


class BadJSON(Exception):
    """The bytes are not one strict JSON document."""


class BadFrame(Exception):
    """The document is not what was asked for; the message names the field.

    Attributes:
        code: `bad_frame` or `unknown_type`.
        in_reply_to: what an answer should refer to, as far as the document tells.
    """

    def __init__(self, message: str, *, code: str = "bad_frame", in_reply_to: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.in_reply_to = in_reply_to


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise BadJSON(f"duplicate key {key[:64]!r}")
            seen.add(key)
    return document


def _integer(digits: str) -> int:
    if len(digits) > MAX_INTEGER_DIGITS + 1:
        raise BadJSON(f"an integer of more than {MAX_INTEGER_DIGITS} digits")
    return int(digits)


def _constant(name: str) -> Any:
    raise BadJSON(f"{name} is not JSON")


def _float(text: str) -> float:
    value = float(text)
    if value in {float("inf"), float("-inf")}:
        raise BadJSON(f"{text[:32]} is out of range")
    return value


_decoder: Final = json.JSONDecoder(
    object_pairs_hook=_pairs, parse_int=_integer, parse_float=_float, parse_constant=_constant
)


def decode_json(data: bytes | str) -> Any:
    """Return the document.

    Raises:
        BadJSON: see above; the message says what.
    """
    try:
        text = data if isinstance(data, str) else data.decode()
    except UnicodeDecodeError as error:
        raise BadJSON("not UTF-8") from error
    if text.count("[") + text.count("{") > MAX_JSON_DEPTH and _depth(text) > MAX_JSON_DEPTH:
        raise BadJSON(f"nested deeper than {MAX_JSON_DEPTH}")
    try:
        return _decoder.decode(text)
    except json.JSONDecodeError as error:
        raise BadJSON(f"{error.msg} at character {error.pos}") from error


def _depth(text: str) -> int:
    """Return the deepest nesting of brackets outside strings, without recursion."""
    depth = deepest = 0
    in_string = escaped = False
    for character in text:
        if escaped:
            escaped = False
        elif character == "\\":
            escaped = in_string
        elif character == '"':
            in_string = not in_string
        elif in_string:
            continue
        elif character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    return deepest


def convert(document: Any, target: type[T]) -> T:
    """Return the document as `target`.

    Raises:
        BadFrame: a field is missing, unknown, of the wrong type, or holds text that cannot be stored.
    """
    _check_text(document, "$")  # first: msgspec fails in its own way on a key that is no text
    try:
        return msgspec.convert(document, target, strict=True)
    except msgspec.ValidationError as error:
        raise BadFrame(_plain(str(error))) from error


def _plain(text: str) -> str:
    """Return text that can always be sent back, whatever the client put into it."""
    return text.encode("ascii", "backslashreplace").decode()


def _check_text(value: Any, path: str) -> None:
    if isinstance(value, str):
        if "\x00" in value:
            raise BadFrame(f"a NUL character - at `{path}`")
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise BadFrame(f"a lone surrogate - at `{path}`") from error
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_text(key, path)
            _check_text(item, f"{path}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_text(item, f"{path}[{index}]")


FRAME_TYPES: Final = frozenset({"user_message", "subscribe", "cancel", "approve", "deny", "ping"})


def decode_frame(data: bytes | str) -> AnyClientFrame:
    """Return the client's frame.

    Raises:
        BadJSON: not one strict JSON document.
        BadFrame: not a frame of the protocol; `code` tells an unknown type from a bad field.
    """
    document = decode_json(data)
    if not isinstance(document, dict):
        raise BadFrame("a frame is a JSON object")
    frame_type = document.get("type")
    if not isinstance(frame_type, str):
        raise BadFrame("`type` is missing or not a string")
    client_id = document.get("client_id")
    in_reply_to = _plain(client_id if isinstance(client_id, str) else frame_type)[:64]
    if frame_type not in FRAME_TYPES:
        raise BadFrame(f"unknown type {frame_type[:64]!r}", code="unknown_type", in_reply_to=in_reply_to)
    try:
        return convert(document, AnyClientFrame)  # type: ignore[arg-type]  # a union is not a type to mypy
    except BadFrame as error:
        error.in_reply_to = in_reply_to
        raise


_encoder: Final = msgspec.json.Encoder()


def encode_frame(frame: ServerFrame) -> bytes:
    """Return the frame's bytes."""
    return _encoder.encode(frame)


def encode_json(document: Any) -> bytes:
    """Return the bytes of any document: HTTP answers and stored answers."""
    return _encoder.encode(document)
