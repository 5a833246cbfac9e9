"""`/v1/admin/*`: what an administrator may see."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio
from quart import Blueprint, Response, request

from app.accounts.signin import ADMIN
from app.audit.event import KINDS
from app.errors import InvalidField
from app.web.authentication import require_identity
from app.web.bodies import json_response
from app.web.parameters import cursor, page_limit
from nurseries.ids import is_id
from nurseries.inspect import nursery_tree

if TYPE_CHECKING:
    from app.web.health import Vitals

LATEST_SECONDS: Final = 1.0
"""How long the trail's page waits for what has just happened to be written."""


def admin_blueprint(vitals: Vitals) -> Blueprint:
    """Return the routes of the administrators; errors are left to `install_problems`."""
    admin = Blueprint("admin", __name__)

    @admin.get("/v1/admin/status")
    async def status() -> Response:
        await require_identity(vitals.service, role=ADMIN)
        return json_response(vitals.status())

    @admin.get("/v1/admin/nurseries")
    async def nurseries() -> Response:
        await require_identity(vitals.service, role=ADMIN)
        return json_response(nursery_tree(vitals.server.sessions, vitals.kernel.live.requests.values()))

    @admin.get("/v1/admin/isolation")
    async def isolation() -> Response:
        await require_identity(vitals.service, role=ADMIN)
        report = await vitals.audit.audit()
        return json_response({"health": vitals.isolation.health, **report.summary()})

    @admin.get("/v1/admin/audit")
    async def audit() -> Response:
        await require_identity(vitals.service, role=ADMIN)
        after, limit = cursor(), page_limit()
        kind, user_id = _one_of_ours("kind", KINDS), request.args.get("user_id")
        if user_id is not None and not is_id(user_id):
            raise InvalidField("user_id", "must be a user id")
        with trio.move_on_after(LATEST_SECONDS):
            await vitals.trail.written()
        entries = await vitals.trail.page(after, limit, kind=kind, user_id=user_id)
        return json_response({"entries": entries, "next": entries[-1].id if entries else after})

    return admin


def _one_of_ours(name: str, known: frozenset[str]) -> str | None:
    text = request.args.get(name)
    if text is not None and text not in known:
        raise InvalidField(name, "no such kind")
    return text
