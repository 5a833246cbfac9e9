"""Runs over HTTP: start, watch, wait for, cancel; and a thread's events as server-sent events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quart import Blueprint, Response

from app.chat.acceptance import KeyReused
from app.chat.calls import open_call
from app.chat.dispatch import DEFAULT_AGENT
from app.chat.ids import known
from app.chat.run import Ask
from app.errors import NotFound
from app.store import approvals as approval_store
from app.web.approvals import shown
from app.web.authentication import require_identity
from app.web.bodies import Body, Empty, json_response, read_body
from app.web.exchange import exchange_nursery
from app.web.parameters import cursor, flag, idempotency_key
from app.web.sse import event_stream, reset_cursor, wants_event_stream
from app.wire.messages import OnConflict, OnDisconnect, Subscribed

if TYPE_CHECKING:
    import trio

    from app.accounts.identity import Identity
    from app.accounts.service import AccountService
    from app.chat.acceptance import Accepted
    from app.chat.runs import Runs
    from app.store.runs import RunRow
    from app.web.feeds import Feeds
    from nurseries.request import Kernel
    from nurseries.server import Server


class NewRun(Body, frozen=True):
    """A message to an agent."""

    content: str
    agent: str | None = None
    on_conflict: OnConflict = "enqueue"
    on_disconnect: OnDisconnect = "continue"


def runs_blueprint(  # noqa: C901  # one closure a route
    service: AccountService, kernel: Kernel, runs: Runs, server: Server, feeds: Feeds
) -> Blueprint:
    """Return the routes of the runs; errors are left to `install_problems`."""
    blueprint = Blueprint("runs", __name__)

    @blueprint.post("/v1/threads/<thread_id>/runs")
    async def create(thread_id: str) -> Response:
        identity = await require_identity(service)
        server.refuse_when_draining()
        body, stream = await read_body(NewRun), wants_event_stream()
        wait = flag("wait") or stream
        ask = Ask(
            thread_id=known(thread_id, "thread"),
            content=body.content,
            agent=DEFAULT_AGENT if body.agent is None else body.agent,
            on_conflict=body.on_conflict,
            on_disconnect=body.on_disconnect,
            key=idempotency_key(),
        )
        # Only a client that waits for the end can leave before it.
        owner = exchange_nursery() if wait and ask.on_disconnect == "cancel" else server.requests
        accepted = await _submit(identity, ask, owner)
        if stream:
            return event_stream(feeds.of_run(identity, thread_id, accepted))
        if wait:
            return json_response(await _outcome(identity, accepted))
        # How it stood when it was accepted: that is the answer which is stored under the key.
        return json_response({"run_id": accepted.run_id, "status": "queued"}, 202)

    @blueprint.get("/v1/threads/<thread_id>/runs/<run_id>")
    async def get(thread_id: str, run_id: str) -> Response:
        identity = await require_identity(service)
        row = await _row(identity, run_id, thread_id)
        document = _shown(row)
        if row.status == "running":
            async with open_call(kernel, identity.user_id) as call:
                asked = await approval_store.of_run(call.database, run_id)
            if pending := [shown(each) for each in asked if each.decision is None]:
                document["approvals"] = pending
        return json_response(document)

    @blueprint.post("/v1/threads/<thread_id>/runs/<run_id>/cancel")
    async def cancel(thread_id: str, run_id: str) -> Response:
        identity = await require_identity(service)
        await read_body(Empty)
        await _row(identity, run_id, thread_id)
        await runs.cancel(identity.user_id, run_id)
        row = await _row(identity, run_id, thread_id)
        return json_response({"run_id": run_id, "status": row.status})

    @blueprint.get("/v1/threads/<thread_id>/events")
    async def events(thread_id: str) -> Response:
        identity = await require_identity(service)
        after = cursor("Last-Event-ID")
        pages, begin = await feeds.of_thread(identity, known(thread_id, "thread"), after)
        if begin == after:
            return event_stream(pages)
        return event_stream(pages, reset_cursor(Subscribed(thread_id, after, begin, recovered=False)))

    async def _submit(identity: Identity, ask: Ask, owner: trio.Nursery) -> Accepted:
        async with open_call(kernel, identity.user_id, thread_id=ask.thread_id) as call:
            try:
                return await runs.submit(call, ask, owner)
            except KeyReused as error:
                raise KeyReused("Idempotency-Key", "this key was used for something else") from error

    async def _row(identity: Identity, run_id: str, thread_id: str | None = None) -> RunRow:
        async with open_call(kernel, identity.user_id) as call:
            row = await runs.row(call, known(run_id, "run"))
        if thread_id is not None and row.thread_id != thread_id:
            raise NotFound("no such run")
        return row

    async def _outcome(identity: Identity, accepted: Accepted) -> dict[str, Any]:
        if accepted.run is not None:
            await runs.ended(accepted.run)
        row = await _row(identity, accepted.run_id)
        return {"run_id": row.run_id, "status": row.status, "output": row.output, **_error(row)}

    return blueprint


def _error(row: RunRow) -> dict[str, Any]:
    if row.error_code is None:
        return {}
    return {"error": {"code": row.error_code, "message": row.error_message}}


def _shown(row: RunRow) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "run_id": row.run_id,
        "status": row.status,
        "agent": row.agent,
        "created_at": row.created_at,
        "started_at": row.started_at,
        "ended_at": row.ended_at,
    }
    if row.output is not None:
        shown["output"] = row.output
    if row.usage is not None:
        shown["usage"] = row.usage
    return {**shown, **_error(row)}
