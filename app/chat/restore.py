"""Taking up a run where a lost server left it: what its user may read is all that is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs
import msgspec
import trio

from app.chat.approvals import Question
from app.chat.ledger import void
from app.chat.run import origin_of
from app.engine.checkpoints import Checkpoint, Past
from app.engine.children import counts_of, parent_run_id
from app.engine.model import Usage
from app.engine.request import Answer
from app.errors import NotFound
from app.store import approvals as approval_store
from app.store import checkpoints as store
from app.store import events as event_store
from app.tools.calls import ToolResult
from app.tools.ledger import Decided
from nurseries.request import Failure

if TYPE_CHECKING:
    from app.chat.journal import Journal
    from app.chat.run import Run
    from nurseries.request import Request


@attrs.frozen
class _Told:
    """The part of an event that tells how a call or a sub-agent stands."""

    payload: dict[str, Any]


_decode: Final = msgspec.json.Decoder(_Told).decode
_TELLING: Final = frozenset(
    {"agent_started", "agent_completed", "agent_failed", "tool_executing", "tool_completed"}
)


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
        return Past(run_id=run.run_id)
    known = await _read(run, request)
    past = known[run.run_id]
    if past.last is not None:
        run.hear(past.last.output)
    await _approvals(run, request, journal, known)
    payload = run.resumed_payload(0 if past.last is None else past.last.step)
    await journal.append(origin, "run_resumed", payload, run.resumed_change())
    return past


async def _read(run: Run, request: Request) -> dict[str, Past]:
    """Return the past of the run and of each sub-agent that its parent knows by a call id, by their run ids.

    The log is the record of how things stand: a call, or a sub-agent, has ended when it says so there.
    """
    assert run.lost is not None
    kept = await _checkpoints(run, request)
    known = {run.run_id: Past(run_id=run.run_id, last=kept.get(run.run_id))}
    after = run.lost.since_seq
    while page := await event_store.read(request.database, run.lost.thread_id, after):
        after = page[-1].seq
        for event in page:
            if event.type in _TELLING and event.run_id.partition("_")[0] == run.run_id:
                payload = _decode(event.data).payload
                if event.type.startswith("agent_"):
                    _agent(known, kept, event.run_id, event.type, payload)
                elif event.run_id in known:
                    _call(known[event.run_id], event.type, payload)
        await trio.lowlevel.checkpoint()
    return known


async def _checkpoints(run: Run, request: Request) -> dict[str, Checkpoint]:
    """Return the last checkpoints by who kept them; count what models have cost until the latest of all."""
    kept: dict[str, Checkpoint] = {}
    models: dict[str, dict[str, int]] = {}
    for row in await store.of_run(request.database, run.run_id):
        kept[row.kept_by] = Checkpoint(row.step, row.output, row.state)
        run.kept_sizes[row.kept_by] = len(row.output) + len(row.state)
        models = max(models, row.models, key=_tokens)
    for name, tokens in models.items():
        run.meter.count(Usage(**tokens, model=name))
    return kept


def _tokens(models: dict[str, dict[str, int]]) -> int:
    return sum(sum(tokens.values()) for tokens in models.values())


def _call(past: Past, event_type: str, payload: dict[str, Any]) -> None:
    if event_type == "tool_executing":
        past.begun[payload["call_id"]] = payload["tool"]
    else:
        result = ToolResult(**payload)
        past.ended[result.call_id] = result


def _agent(
    known: dict[str, Past],
    kept: dict[str, Checkpoint],
    run_id: str,
    event_type: str,
    payload: dict[str, Any],
) -> None:
    """Take note of a sub-agent's start or end."""
    parent = known.get(parent_run_id(run_id, payload["agent"]))
    if parent is None:
        return  # of the run itself, or one inside a sub-agent that begins anew
    if event_type == "agent_started":
        parent.usage["sub_agents"] += 1
        call_id = payload.get("call_id")
        if call_id is not None:
            new = known[run_id] = Past(run_id=run_id, last=kept.get(run_id))
            if (before := parent.children.get(call_id)) is not None:  # it has begun anew before
                new.ended.update(before.ended)
                new.begun.update(before.begun)
                del known[before.run_id]
            parent.children[call_id] = new
        return
    if event_type == "agent_completed":
        parent.usage.update(counts_of(payload["usage"]))
        outcome: Answer | Failure = Answer(payload["output"], payload["usage"])
    else:
        outcome = Failure(payload["code"], payload["message"])
    if (past := known.get(run_id)) is not None:
        past.outcome = outcome
        if past.last is not None:  # of a resumable one the outcome is all that is asked for
            past.ended.clear()
            past.begun.clear()


async def _approvals(run: Run, request: Request, journal: Journal, known: dict[str, Past]) -> None:
    """Take up what its user was asked. Of sub-agents that nobody knows by a call id, nobody waits for theirs."""
    for row in await approval_store.of_run(request.database, run.run_id):
        if row.run_id not in known:
            if row.decision is None:
                await void(journal, origin_of(run), row.run_id, row.call_id)
            continue
        question = run.questions.setdefault((row.run_id, row.call_id), Question(row.expires_at))
        if row.decision is not None:
            question.stand(Decided(row.decision, row.note))
