"""Taking one file out of a multipart body, as it arrives: to disk, and never whole in memory."""

from __future__ import annotations

import errno
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Final

import attrs
from quart import request
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.http import parse_options_header
from werkzeug.sansio.multipart import Data, Epilogue, Field, File, MultipartDecoder, NeedData

from app.errors import Busy, InvalidField, TooLarge

if TYPE_CHECKING:
    from collections.abc import Iterator
    from tempfile import _TemporaryFileWrapper

FIELD: Final = "file"
HEADER_BYTES: Final = 16 * 1024
"""What a multipart body may take besides its file."""

BUFFER_BYTES: Final = 1024 * 1024
"""What the decoder may hold."""

PIECE_BYTES: Final = 64 * 1024
"""What it is given at a time: Quart hands on at once whatever has gathered while others had their turn."""

RETRY_AFTER: Final = 30.0
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE})


@attrs.frozen
class Upload:
    """A file that has arrived: what its sender calls it, where it lies, and how large it is."""

    name: str
    path: Path
    size: int


@contextmanager
def upload_file() -> Iterator[_TemporaryFileWrapper[bytes]]:
    """Have a file for an upload, which is gone at the end of the block.

    Raises:
        Busy: there is no room for it just now.
    """
    try:
        with NamedTemporaryFile(prefix="nurseries-upload-") as file:
            yield file
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise Busy("there is no room for a file just now", retry_after=RETRY_AFTER) from error


async def receive(target: _TemporaryFileWrapper[bytes], most: int) -> Upload:
    """Write the file of the current request's body to `target`.

    Raises:
        InvalidField: the body is not multipart, or has something else than one file in the field `file`.
        TooLarge: the file is larger than `most` bytes.
    """
    kind, options = parse_options_header(request.headers.get("Content-Type", ""))
    boundary = options.get("boundary", "")
    if kind != "multipart/form-data" or not boundary:
        raise InvalidField(FIELD, "must be sent as multipart/form-data")
    receiver = _Receiver(MultipartDecoder(boundary.encode("latin-1", "replace"), BUFFER_BYTES), target, most)
    async for data in request.body:
        for start in range(0, len(data), PIECE_BYTES):
            receiver.take(data[start : start + PIECE_BYTES])
    receiver.take(None)
    target.flush()
    if receiver.name is None:
        raise InvalidField(FIELD, "there is none")
    return Upload(receiver.name, Path(target.name), receiver.size)


class _Receiver:
    """Follows a multipart body: exactly one part, which is a file."""

    def __init__(self, decoder: MultipartDecoder, target: _TemporaryFileWrapper[bytes], most: int) -> None:
        self._decoder = decoder
        self._target = target
        self._most = most
        self._over = False
        self.name: str | None = None
        self.size = 0

    def take(self, data: bytes | None) -> None:
        """Take the next bytes of the body; None stands for its end."""
        if self._over:
            return
        try:
            self._decoder.receive_data(data)
            while not isinstance(event := self._decoder.next_event(), NeedData):
                match event:
                    case File() if event.name == FIELD and self.name is None:
                        self.name = event.filename
                    case File() | Field():
                        raise InvalidField(str(event.name), f"only one file, in the field {FIELD}, is taken")
                    case Data():
                        self._write(event.data)
                    case Epilogue():
                        self._over = True
                        return
        except (ValueError, RequestEntityTooLarge):
            raise InvalidField(FIELD, "the multipart body is damaged") from None

    def _write(self, data: bytes) -> None:
        self.size += len(data)
        if self.size > self._most:
            raise TooLarge(f"a file may have {self._most} bytes")
        self._target.write(data)
