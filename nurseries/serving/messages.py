"""Messages and the frames that carry them (RFC 6455, 5): put together when they come, cut when they go."""

from __future__ import annotations

from typing import TYPE_CHECKING

from websockets.frames import Frame, Opcode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from websockets.extensions import Extension

_FIN = 0x80


class Binary(bytes):
    """A message that goes out as binary; plain `bytes` are a text that is encoded as UTF-8 already."""

    __slots__ = ()


class Assembly:
    """Joins the frames of one message. What bounds its size is the protocol, which counts all fragments."""

    __slots__ = ("_fragments", "_text")

    def __init__(self) -> None:
        self._fragments: bytearray | None = None
        self._text = False

    def add(self, frame: Frame) -> str | bytes | None:
        """Return the message that this frame completes, if it does: text as `str`, binary as `bytes`.

        Raises:
            UnicodeDecodeError: the message is text and not UTF-8.
        """
        opcode = frame.opcode
        if opcode is Opcode.TEXT or opcode is Opcode.BINARY:
            text = opcode is Opcode.TEXT
            data = frame.data
            if not frame.fin:
                self._text = text
                self._fragments = bytearray(data)
                return None
        elif opcode is Opcode.CONT and self._fragments is not None:
            self._fragments += frame.data
            if not frame.fin:
                return None
            text, data, self._fragments = self._text, self._fragments, None
        else:
            return None
        return str(data, "utf-8") if text else bytes(data)

    def clear(self) -> None:
        """Forget what has come of a message."""
        self._fragments = None


def frames_of(messages: Sequence[bytes], extensions: Sequence[Extension]) -> list[bytes]:
    """Return the bytes that carry the messages, one unmasked frame each."""
    pieces: list[bytes] = []
    if extensions:
        for message in messages:
            opcode = Opcode.BINARY if type(message) is Binary else Opcode.TEXT
            pieces.append(Frame(opcode, message).serialize(mask=False, extensions=extensions))
        return pieces
    for message in messages:
        pieces.append(_head(Opcode.BINARY if type(message) is Binary else Opcode.TEXT, len(message)))
        pieces.append(message)
    return pieces


def _head(opcode: int, length: int) -> bytes:
    first = _FIN | opcode
    if length < 126:
        return bytes((first, length))
    if length < 65_536:
        return bytes((first, 126)) + length.to_bytes(2, "big")
    return bytes((first, 127)) + length.to_bytes(8, "big")
