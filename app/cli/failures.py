"""What can stop a client: closed, unreachable, refused; and what it does about "not now"."""

from __future__ import annotations

import random
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar

import attrs
import msgspec
import trio
from rich.console import Console

from nurseries.groups import leaves

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

ABNORMAL: Final = 1006
"""The close code that stands for a connection which ended without one (RFC 6455, 7.1.5)."""

NOT_NOW: Final = frozenset({429, 503})
"""Refusals that name a time after which the same may be asked again."""

INTERRUPTED: Final = 130
"""The exit status of a program that was stopped with Ctrl-C (128 + SIGINT)."""

T = TypeVar("T")


class ClientError(Exception):
    """Something that stops a client; `exit_code` is what its process ends with."""

    exit_code: ClassVar[int] = 1


class Closed(ClientError):
    """The socket is closed; `code` is the peer's, or `ABNORMAL`."""

    exit_code = 4

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(f"the socket was closed with {code}{f' ({reason})' if reason else ''}")
        self.code = code


class Unreachable(ClientError):
    """The server could not be reached, or what answered does not speak the protocol."""

    exit_code = 4


class Refused(ClientError):
    """The server answered, and the answer is no.

    Attributes:
        status: of HTTP.
        code: the stable code of the problem document, empty where there was none.
        retry_after: seconds, where the server named them.
    """

    def __init__(self, status: int, code: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.retry_after = retry_after


class NoSuchAgent(ClientError):
    """The server does not offer the agent that this command talks to."""


class NotAuthenticated(ClientError):
    """There is no way to log in with what is at hand."""

    exit_code = 3


class NoSuchFile(ClientError):
    """A file that a command is about is not there, or cannot be read."""


def error_line(text: str) -> None:
    """Say on standard error what went wrong."""
    Console(stderr=True).print(text, style="red", markup=False)


@attrs.define
class Exit:
    """How a command ends: the `status` that its process exits with."""

    status: int = 0


@contextmanager
def explained(show: Callable[[str], object] = error_line) -> Iterator[Exit]:
    """Have the exit status of a command; what stops the body of the block sets it, and `show` is told why."""
    ending = Exit()
    try:
        yield ending
    except* ClientError as group:
        for error in leaves(group):
            assert isinstance(error, ClientError)
            show(str(error))
            ending.status = error.exit_code
    except* KeyboardInterrupt:
        ending.status = INTERRUPTED


def refusal(status: int, body: bytes, retry_after: str | None) -> Refused:
    """Make the error of a refusal, from its problem document (RFC 9457) where there is one."""
    try:
        document = msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.MsgspecError:
        document = {}
    code = str(document.get("code") or document.get("error") or "")
    words = document.get("detail") or document.get("title") or code or "no reason given"
    try:
        seconds = float(retry_after) if retry_after else None
    except ValueError:  # the date form: nobody here sends it
        seconds = None
    return Refused(status, code, f"{words} (HTTP {status})", seconds)


async def admitted(attempt: Callable[[], Awaitable[T]], *, patience: float) -> T:
    """Return what `attempt` does, made again after the server's `Retry-After` where it has no room now.

    Args:
        attempt: one try.
        patience: seconds of waiting, all together.

    Raises:
        Refused: for another reason, or there is no patience left for the wait that was asked for.
    """
    give_up = trio.current_time() + patience
    while True:
        try:
            return await attempt()
        except Refused as refused:
            # Many who were told the same second must not come back in the same instant.
            wait = (refused.retry_after or 1.0) * random.uniform(1.0, 1.25)  # noqa: S311  # jitter is no secret
            if refused.status not in NOT_NOW or trio.current_time() + wait > give_up:
                raise
        await trio.sleep(wait)
