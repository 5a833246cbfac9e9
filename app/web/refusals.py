"""Who asks over HTTP, and what they are refused, for the audit trail: on every route, whatever it is called."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quart import request

from app.audit.refusals import Caller
from app.web.authentication import current_identity

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.audit.refusals import Refusals


def current_caller() -> Caller:
    """Return who sent the current request, as far as that has been found out."""
    identity = current_identity()
    return Caller(
        user_id=identity.user_id if identity else None,
        session_id=identity.session_id if identity else None,
        address=request.remote_addr,
    )


def teller(refusals: Refusals) -> Callable[[Exception], None]:
    """Return what tells of an error that the current request is answered with."""

    def tell(error: Exception) -> None:
        ids = [*map(str, (request.view_args or {}).values()), request.args.get("before", "")]
        route = request.url_rule.rule if request.url_rule else "no route"
        refusals.tell(error, current_caller(), ids=ids, asked=f"{request.method} {route}")

    return tell
