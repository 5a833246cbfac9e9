"""What a person says, over HTTP, to a tool call that needs it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

import trio
from quart import Blueprint, Response

from app.chat.approvals import Approvals
from app.chat.calls import open_call
from app.web.authentication import require_identity
from app.web.bodies import Body, json_response, read_body
from app.web.refusals import current_caller

if TYPE_CHECKING:
    from app.accounts.service import AccountService
    from app.audit.event import Audit
    from app.chat.runs import Runs
    from app.store.approvals import Approval
    from nurseries.request import Kernel

SETTLE_SECONDS: Final = 20.0
"""How long a decision may take to get into the database; a run takes it at once, unless it is itself held up."""


class Decide(Body, frozen=True):
    """A decision about one call."""

    decision: Literal["approve", "deny"]
    note: str | None = None


def approvals_blueprint(service: AccountService, kernel: Kernel, runs: Runs, audit: Audit) -> Blueprint:
    """Return the route of the decisions; errors are left to `install_problems`."""
    blueprint = Blueprint("approvals", __name__)
    approvals = Approvals(runs, audit)

    @blueprint.post("/v1/threads/<thread_id>/runs/<run_id>/approvals/<call_id>")
    async def decide(thread_id: str, run_id: str, call_id: str) -> Response:
        identity = await require_identity(service)
        body = await read_body(Decide)
        async with open_call(kernel, identity.user_id) as call:
            question = await approvals.answer(
                call,
                run_id,
                call_id,
                body.decision,
                body.note,
                caller=current_caller(),
                thread_id=thread_id,
            )
        if question is not None:
            with trio.move_on_after(SETTLE_SECONDS):
                await question.settled.wait()
        async with open_call(kernel, identity.user_id) as call:
            settled = await approvals.settle(call, run_id, call_id, body.decision)
        return json_response(shown(settled))

    return blueprint


def shown(approval: Approval) -> dict[str, Any]:
    """Return an approval as the protocol shows it."""
    document: dict[str, Any] = {
        "run_id": approval.run_id,
        "call_id": approval.call_id,
        "tool": approval.tool,
        "arguments": approval.arguments,
        "requested_at": approval.requested_at,
        "expires_at": approval.expires_at,
    }
    if approval.decision is not None:
        document["decision"] = approval.decision
    if approval.note is not None:
        document["note"] = approval.note
    return document
