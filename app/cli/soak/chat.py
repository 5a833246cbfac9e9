"""One user's conversation over sockets that come and go."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import uuid4

import attrs
import trio

from app.cli.link import Link
from app.cli.soak.tap import Tap

if TYPE_CHECKING:
    from app.cli.connection import Connection
    from app.cli.credentials import Credentials
    from app.cli.failures import ClientError
    from app.cli.frames import Frame
    from app.cli.soak.tap import Witness


@attrs.define(eq=False)
class Asked:
    """One message and what became of it.

    Attributes:
        outcome: the type of the event that ended its run, or the code of the error that refused it.
        accepted, ended: set when it was, or when it was refused.
    """

    run_id: str = ""
    outcome: str = ""
    output: str = ""
    accepted: trio.Event = attrs.field(factory=trio.Event)
    ended: trio.Event = attrs.field(factory=trio.Event)

    def settle(self, outcome: str) -> None:
        """It has come to its end."""
        self.outcome = outcome
        self.accepted.set()
        self.ended.set()


class TappedLink(Link):
    """A link whose every frame is looked at, and whose socket can be lost on purpose."""

    def __init__(self, url: str, credentials: Credentials, witness: Witness, *, patience: float) -> None:
        super().__init__(url, credentials, patience=patience)
        self._witness = witness
        self._tap = Tap(witness)
        self._connection: Connection | None = None
        self.sockets = 0

    async def lose(self) -> None:
        """Let the present socket break."""
        if self._connection is not None:
            await self._connection.abort()

    async def _serve(self, connection: Connection) -> ClientError:
        self._tap = Tap(self._witness)
        self._connection = connection
        self.sockets += 1
        try:
            return await super()._serve(connection)
        finally:
            self._connection = None

    def _take(self, frame: Frame, raw: bytes) -> None:
        self._tap.take(frame, raw)
        super()._take(frame, raw)


class Chat:
    """Asks over a link, and knows what became of every message."""

    def __init__(self, link: TappedLink, witness: Witness) -> None:
        self.link = link
        self._witness = witness
        self._asked: dict[str, Asked] = {}
        self._by_run: dict[str, Asked] = {}

    def ask(self, content: str, agent: str, *, on_conflict: str | None = None) -> Asked:
        """Send a message; what becomes of it shows in what is returned."""
        client_id = self._witness.marks.add(self._witness.user_id, str(uuid4()))
        asked = self._asked[client_id] = Asked()
        self.link.ask(client_id, content, agent, on_conflict=on_conflict)
        return asked

    # -- what the link tells ---------------------------------------------------------------------------

    def on_frame(self, frame: Frame, _raw: bytes) -> None:
        """Take an event of the conversation, or what answers a message."""
        if frame.type == "accepted" and frame.client_id is not None:
            self._accepted(frame.client_id, frame.run_id)
        elif frame.type == "error":
            self._refused(frame)
        elif frame.type == "run_queued" and frame.payload.get("client_id"):
            self._accepted(str(frame.payload["client_id"]), frame.run_id)
        elif frame.ends_run:
            asked = self._by_run.pop(frame.run_id, None)
            if asked is not None:
                asked.output = str(frame.payload.get("output", ""))
                asked.settle(frame.type)

    def on_status(self, text: str) -> None:
        """Sockets come and go here on purpose."""

    def on_gap(self, _last_seq: int) -> None:
        """The tap has counted it."""

    def _accepted(self, client_id: str, run_id: str) -> None:
        self.link.forget(client_id)
        asked = self._asked.pop(client_id, None)
        if asked is not None:
            asked.run_id = self._witness.marks.add(self._witness.user_id, run_id)
            self._by_run[run_id] = asked
            asked.accepted.set()

    def _refused(self, frame: Frame) -> None:
        asked = self._asked.pop(frame.in_reply_to or "", None)
        if asked is not None:
            self.link.forget(frame.in_reply_to or "")
            asked.settle(frame.code)
        elif frame.in_reply_to != "cancel":
            self._witness.tally.error(f"an error frame: {frame.code}")
