"""One user of a soak: an account, and two lives side by side, one over sockets and one over HTTP."""

from __future__ import annotations

import random
import secrets
from typing import TYPE_CHECKING, Final

import attrs
import trio

from app.cli.credentials import Credentials, TokenCache
from app.cli.failures import ClientError, Closed, Refused
from app.cli.soak.caller import Caller, Unexpected
from app.cli.soak.chat import Chat, TappedLink
from app.cli.soak.http_life import HttpLife
from app.cli.soak.socket_life import SocketLife
from app.cli.soak.tap import Witness

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from app.cli.client import Api
    from app.cli.load import Tally
    from app.cli.soak.marks import Marks

    Activity = Callable[[], Awaitable[None]]

ACTIVITY_SECONDS: Final = 120.0
"""How long one thing may take before it counts as an error."""

LINK_PATIENCE: Final = 120.0


@attrs.define(eq=False)
class Life:
    """Things that are done one after the other, each as often as its weight says, with pauses in between.

    Attributes:
        begins: which of them is the first: enough users do everything between them, however slow the server is.
    """

    activities: dict[str, tuple[int, Activity]]
    witness: Witness
    done: dict[str, int]
    begins: int

    async def live(self, until: float, pause: float) -> None:
        """Go on until this time, and end what is being done."""
        names = list(self.activities)
        weights = [self.activities[name][0] for name in names]
        name = names[self.begins % len(names)]
        await trio.sleep(random.uniform(0, 2 * pause))  # people do not start in the same instant
        while trio.current_time() < until:
            await self._do(name, self.activities[name][1])
            name = random.choices(names, weights)[0]
            await trio.sleep(random.uniform(0, 2 * pause))

    async def _do(self, name: str, activity: Activity) -> None:
        with trio.move_on_after(ACTIVITY_SECONDS) as scope:
            try:
                await activity()
            except (ClientError, Unexpected, ValueError) as error:
                self.witness.tally.error(f"{name}: {_short(error)}")
        if scope.cancelled_caught:
            self.witness.tally.error(f"{name}: not done within {ACTIVITY_SECONDS:.0f} s")
        self.done[name] = self.done.get(name, 0) + 1


class SoakUser:
    """Somebody who uses everything that the protocol has.

    Attributes:
        witness: what everything that reaches them is compared with.
        thread_id: their conversation over sockets.
    """

    witness: Witness
    thread_id: str

    def __init__(self, url: str, api: Api, place: Path, number: int) -> None:
        self._number = number
        self._url = url
        self._api = api
        self._email = f"soak-{secrets.token_hex(8)}@example.com"
        self._password = secrets.token_urlsafe(24)
        cache = TokenCache(place / f"{self._email}.json")
        self._credentials = Credentials(api, cache, url, self._email, self._password)

    async def sign_up(
        self, marks: Marks, tally: Tally, done: dict[str, int], foreign_thread: Callable[[], str]
    ) -> None:
        """Make the account and the conversations."""
        await self._credentials.register()
        await self._credentials.check()
        user_id = marks.add(self._credentials.user_id, self._credentials.user_id)
        self.witness = Witness(user_id, marks, tally, marks.canary(user_id))
        caller = Caller(self._url, self._api, self._credentials, self.witness)
        self.thread_id = await caller.thread()
        self._link = TappedLink(self._url, self._credentials, self.witness, patience=LINK_PATIENCE)
        self._link.follow(self.thread_id, 0)
        self._chat = Chat(self._link, self.witness)
        http = HttpLife(
            self._api, self._credentials, caller, self.witness, await caller.thread(), foreign_thread
        )
        sockets = SocketLife(self._chat, caller, self.witness, foreign_thread)
        self._caller = caller
        self._lives = [
            Life(_over_sockets(sockets), self.witness, done, self._number),
            Life(_over_http(http, self._email, self._password), self.witness, done, self._number),
        ]

    async def live(self, until: float, pause: float) -> None:
        """Do this and that until then, and look at last whether all events of the conversation came."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._link.run, self._chat)
                async with trio.open_nursery() as lives:
                    for life in self._lives:
                        lives.start_soon(life.live, until, pause)
                await self._compare()
                nursery.cancel_scope.cancel()
        except* (ClientError, Unexpected) as group:
            for error in group.exceptions:
                self.witness.tally.error(f"the user left: {_short(error)}")

    async def _compare(self) -> None:
        """What the log holds must have come, by whatever sockets."""
        last_seq = (await self._caller.call("GET", f"/v1/threads/{self.thread_id}"))["last_seq"]
        with trio.move_on_after(ACTIVITY_SECONDS):
            while self._link.cursor.seq < last_seq:  # noqa: ASYNC110  # a link does not tell of every event
                await trio.sleep(0.1)
            return
        self.witness.tally.gap(self.thread_id, self._link.cursor.seq + 1, last_seq)


def _over_sockets(life: SocketLife) -> dict[str, tuple[int, Activity]]:
    return {
        "chat": (30, life.chat),
        "load": (12, life.load),
        "cancel": (6, life.cancel),
        "conflict": (8, life.conflict),
        "lost socket": (8, life.lose),
        "slow socket": (1, life.read_slowly),
        "broken frames": (3, life.break_frames),
    }


def _over_http(life: HttpLife, email: str, password: str) -> dict[str, tuple[int, Activity]]:
    async def log_in_and_out() -> None:
        await life.log_in_and_out(email, password)

    return {
        "run, waited for": (12, life.wait),
        "run, watched": (8, life.watch_run),
        "run, left": (4, life.leave_run),
        "log, read again": (6, life.watch_thread),
        "pages": (8, life.read),
        "refresh": (4, life.refresh),
        "login and logout": (1, log_in_and_out),
        "deletion": (4, life.delete),
        "what is not theirs": (4, life.pry),
        "repeated key": (4, life.repeat),
    }


def _short(error: BaseException) -> str:
    """Name an error without what differs each time, so that equal ones are counted together."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, Refused):
        return f"HTTP {error.status} {error.code}"
    if isinstance(error, Closed):
        return f"closed with {error.code}"
    return str(error)[:120] if isinstance(error, Unexpected) else type(error).__name__
