"""The protocol's HTTP side as a client sees it."""

from __future__ import annotations

import ssl
import time
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import urlsplit

import attrs
import httpx
import msgspec
import trio

from app.cli.failures import NoSuchFile, Unreachable, admitted, refusal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from trio.abc import Stream

CALL_SECONDS: Final = 30.0
"""How long one HTTP call may take, every byte of it."""

EARLY_SECONDS: Final = 30.0
"""A token this close to its end is renewed before it is used."""

SOCKET_PATH: Final = "/v1/ws"

T = TypeVar("T")


# -- values ------------------------------------------------------------------------------------------


@attrs.frozen
class Tokens:
    """One login. `expires_at` is Unix time, by this machine's clock, of the access token."""

    access_token: str = attrs.field(repr=False)
    refresh_token: str = attrs.field(repr=False)
    expires_at: float

    @property
    def is_fresh(self) -> bool:
        """Whether the access token is good for a while yet."""
        return self.expires_at > time.time() + EARLY_SECONDS


@attrs.frozen
class Thread:
    """A conversation, and how long its event log is."""

    thread_id: str
    title: str
    created_at: str
    last_seq: int


@attrs.frozen
class Message:
    """What was said once; `role` is `user` or `assistant`."""

    role: str
    content: str
    created_at: str = ""


@attrs.frozen
class Run:
    """How a run stands, or how it ended."""

    run_id: str
    status: str
    output: str | None = None


@attrs.frozen
class _Login:
    access_token: str
    refresh_token: str
    expires_in: float


@attrs.frozen
class _Registered:
    user_id: str


@attrs.frozen
class _Me:
    user_id: str
    email: str


@attrs.frozen
class _Agent:
    name: str


@attrs.frozen
class _Agents:
    agents: list[_Agent]


@attrs.frozen
class _Threads:
    threads: list[Thread]


@attrs.frozen
class _Messages:
    messages: list[Message]


# -- calls -------------------------------------------------------------------------------------------


class Api:
    """The HTTP calls of one server.

    A 429 or 503 is tried again after the server's `Retry-After`, as long as `patience` seconds of
    waiting are left for that call.

    Attributes:
        patience: as above.
    """

    def __init__(self, http: httpx.AsyncClient, *, patience: float) -> None:
        self._http = http
        self.patience = patience

    async def register(self, email: str, password: str) -> str:
        """Make an account and return its user id."""
        answer = await self.call("POST", "/v1/auth/register", {"email": email, "password": password})
        return read(answer, _Registered).user_id

    async def login(self, email: str, password: str) -> Tokens:
        """Start a session."""
        return _tokens(await self.call("POST", "/v1/auth/login", {"email": email, "password": password}))

    async def signin(self, code: str) -> Tokens:
        """Trade the code of a sign-in link for a session. It works once."""
        return _tokens(await self.call("POST", "/v1/auth/signin", {"code": code}))

    async def refresh(self, refresh_token: str) -> Tokens:
        """Trade a refresh token for a new pair. It works once: who shares one takes turns."""
        return _tokens(await self.call("POST", "/v1/auth/refresh", {"refresh_token": refresh_token}))

    async def me(self, token: str) -> str:
        """Return the user id that a token stands for."""
        return read(await self.call("GET", "/v1/me", token=token), _Me).user_id

    async def email(self, token: str) -> str:
        """Return the email address of the account that a token stands for."""
        return read(await self.call("GET", "/v1/me", token=token), _Me).email

    async def create_thread(self, token: str, title: str = "") -> Thread:
        """Start a conversation."""
        return read(
            await self.call("POST", "/v1/threads", {"title": title} if title else {}, token=token), Thread
        )

    async def threads(self, token: str, limit: int = 20) -> list[Thread]:
        """Return the newest conversations, newest first."""
        return read(await self.call("GET", f"/v1/threads?limit={limit}", token=token), _Threads).threads

    async def thread(self, token: str, thread_id: str) -> Thread:
        """Return one conversation."""
        return read(await self.call("GET", f"/v1/threads/{thread_id}", token=token), Thread)

    async def messages(self, token: str, thread_id: str, limit: int = 20) -> list[Message]:
        """Return the newest messages of a conversation, as the server orders them."""
        path = f"/v1/threads/{thread_id}/messages?limit={limit}"
        return read(await self.call("GET", path, token=token), _Messages).messages

    async def run(self, token: str, thread_id: str, run_id: str) -> Run:
        """Return how a run stands."""
        return read(await self.call("GET", f"/v1/threads/{thread_id}/runs/{run_id}", token=token), Run)

    async def agents(self, token: str) -> set[str]:
        """Return the names of the agents that the server offers."""
        return {
            agent.name for agent in read(await self.call("GET", "/v1/agents", token=token), _Agents).agents
        }

    async def text(self, path: str, token: str | None = None) -> str:
        """Return what a GET answers, as text (the metrics)."""
        return (await self.call("GET", path, token=token)).text

    async def call(  # noqa: PLR0913  # a request has as many parts
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        token: str | None = None,
        key: str | None = None,
        file: Path | None = None,
    ) -> httpx.Response:
        """Call the server, again after its `Retry-After` where it has no room, and return a success.

        Args:
            method: of HTTP.
            path: from the root on.
            body: sent as JSON.
            token: an access token.
            key: an idempotency key.
            file: sent as multipart/form-data, in place of a body.

        Raises:
            NoSuchFile: the file cannot be read.
            Refused: the answer is a refusal.
            Unreachable: there was none.
        """
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        if key is not None:
            headers["Idempotency-Key"] = key

        async def attempt() -> httpx.Response:
            try:
                with _opened(file) as parts:
                    answer = await self._http.request(method, path, json=body, files=parts, headers=headers)
            except httpx.HTTPError as exc:
                raise Unreachable(f"cannot reach {self._http.base_url}: {exc or type(exc).__name__}") from exc
            if not answer.is_success:
                raise refusal(answer.status_code, answer.content, answer.headers.get("Retry-After"))
            return answer

        return await admitted(attempt, patience=self.patience)


@contextmanager
def _opened(path: Path | None) -> Iterator[dict[str, Any] | None]:
    """Have a file to send, if there is one."""
    if path is None:
        yield None
        return
    try:
        file = path.open("rb")
    except OSError as error:
        raise NoSuchFile(f"{path}: {error.strerror}") from error
    with file:
        yield {"file": (path.name, file)}


@asynccontextmanager
async def open_api(url: str, *, patience: float = 10.0, connections: int = 4) -> AsyncIterator[Api]:
    """Open the HTTP side of the server at `url` (`http://host:port`).

    Proxies of the environment are not used: the socket could not take them, and two ways to one server
    would fail differently.
    """
    async with httpx.AsyncClient(
        base_url=url,
        verify=ssl.create_default_context() if url.startswith("https:") else False,
        timeout=CALL_SECONDS,
        trust_env=False,
        limits=httpx.Limits(max_connections=connections),
    ) as http:
        yield Api(http, patience=patience)


async def open_stream(url: str) -> Stream:
    """Connect to the server at `url`, for a socket. The caller closes the stream.

    Raises:
        Unreachable: nobody listens there, or TLS failed.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        if parts.scheme == "https":
            return await trio.open_ssl_over_tcp_stream(host, parts.port or 443, https_compatible=True)
        return await trio.open_tcp_stream(host, parts.port or 80)
    except (OSError, trio.BrokenResourceError) as exc:
        raise Unreachable(f"cannot connect to {url}: {exc}") from exc


def _tokens(answer: httpx.Response) -> Tokens:
    login = read(answer, _Login)
    return Tokens(login.access_token, login.refresh_token, time.time() + login.expires_in)


def read(answer: httpx.Response, shape: type[T]) -> T:
    """Return what an answer holds.

    Raises:
        Unreachable: it is not of this protocol.
    """
    try:
        return msgspec.json.decode(answer.content, type=shape)
    except msgspec.MsgspecError as exc:
        raise Unreachable(f"{answer.request.url}: an answer that is not of this protocol ({exc})") from exc
