"""Taking up a run where a lost server left it: what its user may read is all that is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs
import msgspec
import trio

from app.chat.approvals import Question
from app.chat.ledger import Past
from app.chat.run import origin_of
from app.engine.checkpoints import Checkpoint
from app.engine.model import Usage
from app.errors import NotFound
from app.store import approvals as approval_store
from app.store import checkpoints as store
from app.store import events as event_store
from app.tools.dispatcher import ToolResult
from app.tools.ledger import Decided
from nurseries.events import Origin

if TYPE_CHECKING:
    from app.chat.journal import Journal
    from app.chat.run import Run
    from nurseries.request import Request


@attrs.frozen
class _Told:
    """The part of an event that tells how a call stands."""

    payload: dict[str, Any]


_decode: Final = msgspec.json.Decoder(_Told).decode


async def restore(run: Run, request: Request, journal: Journal) -> Past:
    """Read what a lost server left of the run, tell its clients where it stands, and return its past.

    Raises:
        NotFound: its message has been removed.
    """
    assert run.lost is not None
    origin = origin_of(run)
    left = await store.left(request.database, run.run_id)
    if left is None:
        raise NotFound("the message of this run has been removed")
    run.ask = attrs.evolve(run.ask, content=left.content, client_id=left.client_id)
    if not left.announced:
        await journal.append(origin, "run_queued", run.queued_payload())
    if not run.started:
        return Past()
    last = None
    if left.step is not None and left.output is not None and left.state is not None:
        last = Checkpoint(left.step, left.output, left.state)
        run.hear(left.output)
        for name, tokens in (left.models or {}).items():
            run.meter.count(Usage(**tokens, model=name))
    past = await _calls(run, request, last)
    await _approvals(run, request, journal)
    payload = run.resumed_payload(0 if last is None else last.step)
    await journal.append(origin, "run_resumed", payload, run.resumed_change())
    return past


async def _calls(run: Run, request: Request, last: Checkpoint | None) -> Past:
    """Read how the run's calls stand. The log is the record of them: a call has ended when it says so there."""
    assert run.lost is not None
    ended: dict[str, ToolResult] = {}
    begun: set[str] = set()
    after = run.lost.since_seq
    while page := await event_store.read(request.database, run.lost.thread_id, after):
        after = page[-1].seq
        for event in page:
            if event.run_id != run.run_id:
                continue
            if event.type == "tool_executing":
                begun.add(_decode(event.data).payload["call_id"])
            elif event.type == "tool_completed":
                result = ToolResult(**_decode(event.data).payload)
                ended[result.call_id] = result
        await trio.lowlevel.checkpoint()
    return Past(last=last, ended=ended, begun=frozenset(begun))


async def _approvals(run: Run, request: Request, journal: Journal) -> None:
    """Take up what its user was asked. Operations inside it begin anew, so nobody waits for theirs any more."""
    for row in await approval_store.of_run(request.database, run.run_id):
        if row.run_id != run.run_id:
            if row.decision is None:
                await journal.append(
                    Origin.of_ids(request.context.user_id, row.thread_id, row.run_id),
                    "approval_resolved",
                    {"call_id": row.call_id, "decision": "void"},
                    approval_store.Answered(row.run_id, row.call_id, "void", None),
                )
            continue
        question = run.questions.setdefault((row.run_id, row.call_id), Question(row.expires_at))
        if row.decision is not None:
            question.stand(Decided(row.decision, row.note))
