"""One user's calls over HTTP, every answer of which is looked at."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from app.cli.connection import open_connection
from app.cli.failures import Refused
from app.cli.soak.source import open_source
from app.cli.soak.tap import Tap

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from app.cli.client import Api
    from app.cli.connection import Connection
    from app.cli.credentials import Credentials
    from app.cli.soak.source import Source
    from app.cli.soak.tap import Witness


class Unexpected(Exception):
    """The server answered otherwise than the protocol says."""


class Caller:
    """Calls the server as one user."""

    def __init__(self, url: str, api: Api, credentials: Credentials, witness: Witness) -> None:
        self._url = url
        self._api = api
        self._credentials = credentials
        self._witness = witness

    async def call(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, key: str | None = None
    ) -> Any:
        """Return what the server answers, as Python values."""
        token = await self._credentials.token()
        answer = await self._api.call(method, path, body, token=token, key=key)
        self._witness.look(answer.content, f"{method} answer")
        return msgspec.json.decode(answer.content) if answer.content else None

    async def refused(
        self,
        status: int,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        key: str | None = None,
    ) -> None:
        """Make a call that must be refused with this status.

        Raises:
            Unexpected: it was not.
        """
        try:
            await self.call(method, path, body, key=key)
        except Refused as refusal:
            self._witness.look(str(refusal).encode(), "refusal")
            if refusal.status != status:
                raise Unexpected(f"HTTP {refusal.status} in place of {status}") from None
        else:
            raise Unexpected(f"a success in place of {status}")

    async def thread(self) -> str:
        """Make a conversation and return its id."""
        made = await self.call("POST", "/v1/threads", {"title": self._witness.canary})
        return self._witness.marks.add(self._witness.user_id, made["thread_id"])

    @asynccontextmanager
    async def socket(self) -> AsyncIterator[Connection]:
        """Open a socket."""
        token = await self._credentials.token()
        async with open_connection(self._url, token, patience=self._api.patience) as connection:
            yield connection

    @asynccontextmanager
    async def events(
        self, method: str, path: str, thread_id: str, after: int, body: dict[str, Any] | None = None
    ) -> AsyncIterator[Source]:
        """Watch server-sent events of a thread, from behind `after` on; leaving the block leaves the stream."""
        tap = Tap(self._witness)
        tap.expect(thread_id, after)
        token = await self._credentials.token()
        async with open_source(
            method, self._url, path, body, token=token, tap=tap, patience=self._api.patience
        ) as source:
            yield source
