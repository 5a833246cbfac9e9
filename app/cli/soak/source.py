"""Server-sent events as a client may read them: as far as it likes, and then it is gone."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import h11
import msgspec
import trio

from app.cli.client import open_stream
from app.cli.failures import Unreachable, admitted, refusal
from app.cli.frames import Frame, decode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from app.cli.soak.tap import Tap

ANSWER_SECONDS: Final = 60.0
"""How long a stream may be silent; its server says something every 15 s."""

_PREFIX: Final = b"data: "


class Source:
    """One answer, read event by event."""

    def __init__(self, stream: trio.abc.Stream, tap: Tap) -> None:
        self._stream = stream
        self._tap = tap
        self._http = h11.Connection(h11.CLIENT)
        self._text = b""

    async def ask(self, method: str, url: str, path: str, body: dict[str, Any] | None, token: str) -> None:
        """Send the request and take the head of the answer.

        Raises:
            Refused: the answer is a refusal.
        """
        data = b"" if body is None else msgspec.json.encode(body)
        headers = {
            "Host": urlsplit(url).netloc,
            "Authorization": f"Bearer {token}",
            "Accept": "text/event-stream",
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
        }
        request = h11.Request(method=method, target=path, headers=list(headers.items()))
        parts = (request, h11.Data(data=data), h11.EndOfMessage())
        await self._stream.send_all(b"".join(self._http.send(part) or b"" for part in parts))
        head = await self._next()
        assert isinstance(head, h11.Response)
        if head.status_code != 200:
            fields = dict(head.headers)
            raise refusal(head.status_code, await self._rest(), fields.get(b"retry-after", b"").decode())

    async def next(self) -> Frame | None:
        """Return the next event, None at the end of the stream."""
        while True:
            line, found, rest = self._text.partition(b"\n")
            if not found:
                event = await self._next()
                if not isinstance(event, h11.Data):
                    return None
                self._text += bytes(event.data)
                continue
            self._text = rest
            if line.startswith(_PREFIX):
                raw = line.removeprefix(_PREFIX)
                frame = decode(raw)
                self._tap.take(frame, raw)
                return frame

    async def _rest(self) -> bytes:
        data = b""
        while isinstance(event := await self._next(), h11.Data):
            data += bytes(event.data)
        return data

    async def _next(self) -> h11.Event | type[h11.PAUSED]:
        with trio.move_on_after(ANSWER_SECONDS):
            while (event := self._http.next_event()) is h11.NEED_DATA:
                self._http.receive_data(bytes(await self._stream.receive_some(65536)))
            assert not isinstance(event, type) or event is h11.PAUSED
            return event
        raise Unreachable(f"a stream that was silent for {ANSWER_SECONDS:.0f} s")


@asynccontextmanager
async def open_source(  # noqa: PLR0913  # a request, and who reads its answer
    method: str,
    url: str,
    path: str,
    body: dict[str, Any] | None,
    *,
    token: str,
    tap: Tap,
    patience: float,
) -> AsyncIterator[Source]:
    """Ask for server-sent events; leaving the block is leaving the server without a word.

    Waits up to `patience` seconds where the server says that it has no room now.

    Raises:
        Refused: the answer is a refusal.
        Unreachable: there was none, or it broke off.
    """

    async def ask() -> tuple[trio.abc.Stream, Source]:
        stream = await open_stream(url)
        try:
            source = Source(stream, tap)
            await source.ask(method, url, path, body, token)
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        return stream, source

    try:
        stream, source = await admitted(ask, patience=patience)
        try:
            yield source
        finally:
            await trio.aclose_forcefully(stream)
    except (trio.BrokenResourceError, h11.RemoteProtocolError) as error:
        raise Unreachable(f"{url}: {error or type(error).__name__}") from error
