"""What a frame does. One method a frame type; an error answers the frame and ends nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from app.chat.approvals import Approvals
from app.chat.calls import open_call
from app.chat.ids import known
from app.chat.run import Ask
from app.errors import NotFound, is_fault, message_of, outcome_of
from app.store import events as event_store
from app.wire.codec import BadFrame, BadJSON, decode_frame, encode_frame
from app.wire.messages import (
    Accepted,
    Approve,
    Cancel,
    Deny,
    ErrorFrame,
    Ping,
    Pong,
    Subscribe,
    Subscribed,
    UserMessage,
)
from nurseries.errors import Unavailable
from nurseries.serving import SocketClosed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from app.audit.event import Audit
    from app.audit.refusals import Caller, Refusals
    from app.chat.runs import Runs
    from app.wire.messages import AnyClientFrame
    from nurseries.events import Event
    from nurseries.request import Kernel
    from nurseries.server import Server
    from nurseries.session import Session

DEFAULT_AGENT = "assistant"
PONG = encode_frame(Pong())
logger = structlog.get_logger(__name__)


class Dispatch:
    """Handles the frames of all sessions; what it knows of a user is in what it is called with."""

    def __init__(self, kernel: Kernel, runs: Runs, server: Server, refusals: Refusals, audit: Audit) -> None:
        self._kernel = kernel
        self._runs = runs
        self._approvals = Approvals(runs, audit)
        self._server = server
        self._refusals = refusals

    async def __call__(self, caller: Caller, session: Session, data: str | bytes) -> None:
        """Handle one frame of a session; frames of one session come here one after the other.

        Args:
            caller: whose the session is, for the audit trail.
            session: that answers.
            data: the frame.
        """
        reference, frame = None, None
        try:
            if isinstance(data, bytes):
                raise BadFrame("a frame is a text message")  # noqa: TRY301  # answered like every other refusal
            frame = decode_frame(data)
            if not isinstance(frame, Subscribe):
                session.settle()
            match frame:
                case UserMessage():
                    reference = frame.client_id or "user_message"
                    await self._user_message(session, frame)
                case Subscribe():
                    reference = "subscribe"
                    await self._subscribe(session, frame)
                case Cancel():
                    reference = "cancel"
                    await self._cancel(session, frame)
                case Approve() | Deny():
                    reference = "approve" if isinstance(frame, Approve) else "deny"
                    await self._decide(caller, session, frame)
                case Ping():
                    await session.answer(PONG)
        except SocketClosed:
            raise  # the peer is gone: that is the session's business, and no fault
        except Exception as error:  # noqa: BLE001  # one frame's crash barrier; faults are logged below
            self._refusals.tell(error, caller, ids=_ids_of(frame), asked=_name_of(frame))
            await session.answer(_error_frame(error, reference))

    async def _user_message(self, session: Session, frame: UserMessage) -> None:
        self._server.refuse_when_draining()
        thread_id = known(frame.thread_id, "thread")
        ask = Ask(
            thread_id=thread_id,
            content=frame.content,
            agent=DEFAULT_AGENT if frame.agent is None else frame.agent,
            on_conflict=frame.on_conflict,
            on_disconnect=frame.on_disconnect,
            key=frame.client_id,
            client_id=frame.client_id,
        )
        owner = self._server.requests if frame.on_disconnect == "continue" else session.requests
        async with open_call(
            self._kernel, session.user_id, thread_id=thread_id, socket_id=session.id
        ) as request:
            accepted = await self._runs.submit(request, ask, owner)
        await session.answer(
            encode_frame(
                Accepted(run_id=accepted.run_id, duplicate=accepted.duplicate, client_id=frame.client_id)
            )
        )

    async def _subscribe(self, session: Session, frame: Subscribe) -> None:
        thread_id = known(frame.thread_id, "thread")

        def subscribed(last_seq: int, recovered: bool) -> bytes:  # noqa: FBT001  # called by position once
            return encode_frame(
                Subscribed(thread_id=thread_id, after=frame.after, last_seq=last_seq, recovered=recovered)
            )

        history = ThreadHistory(self._kernel, session.user_id)
        await session.replay(thread_id, frame.after, history, subscribed)

    async def _cancel(self, session: Session, frame: Cancel) -> None:
        run_id = known(frame.run_id, "run")
        live = self._runs.live(session.user_id, run_id)
        if live is not None:
            live.cancel("requested")  # run_cancelled follows when it is done
            return
        async with open_call(self._kernel, session.user_id, socket_id=session.id) as request:
            await self._runs.row(request, run_id)  # not_found, if it is not this user's

    async def _decide(self, caller: Caller, session: Session, frame: Approve | Deny) -> None:
        # approval_resolved follows when the run has taken it
        async with open_call(self._kernel, session.user_id, socket_id=session.id) as request:
            await self._approvals.answer(
                request,
                frame.run_id,
                frame.call_id,
                "approve" if isinstance(frame, Approve) else "deny",
                frame.note,
                caller=caller,
            )


class ThreadHistory:
    """Reads event logs as one user, each page in a request of its own, so that a slow reader holds nothing."""

    def __init__(self, kernel: Kernel, user_id: str) -> None:
        self._kernel = kernel
        self._user_id = user_id

    async def last_seq(self, thread_id: str) -> int:
        """Return the number of the thread's last event.

        Raises:
            NotFound: the user has no such thread.
        """
        async with open_call(self._kernel, self._user_id, thread_id=thread_id) as request:
            last_seq = await event_store.last_seq(request.database, thread_id)
        if last_seq is None:
            raise NotFound("no such thread")
        return last_seq

    async def read(self, thread_id: str, after: int) -> Sequence[Event]:
        """Return a page of the events after `after`."""
        async with open_call(self._kernel, self._user_id, thread_id=thread_id) as request:
            return await event_store.read(request.database, thread_id, after)


def _name_of(frame: AnyClientFrame | None) -> str:
    return "frame" if frame is None else str(frame.__struct_config__.tag)


def _ids_of(frame: AnyClientFrame | None) -> Iterator[str]:
    """Yield what a frame names, whatever frames there will be."""
    for name in () if frame is None else frame.__struct_fields__:
        value = getattr(frame, name)
        if name.endswith("_id") and isinstance(value, str):
            yield value


def _error_frame(error: Exception, reference: str | None) -> bytes:
    if isinstance(error, BadFrame):
        return encode_frame(ErrorFrame(error.code, str(error), in_reply_to=error.in_reply_to))
    if isinstance(error, BadJSON):
        return encode_frame(ErrorFrame("bad_json", str(error)))
    if is_fault(error):
        logger.error("frame failed", exc_info=error)
    retry_after = error.retry_after if isinstance(error, Unavailable) else None
    return encode_frame(
        ErrorFrame(outcome_of(error).wire, message_of(error), in_reply_to=reference, retry_after=retry_after)
    )
