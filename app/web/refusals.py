"""What HTTP answers with a refusal, told to the audit trail: on every route, whatever it is called."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quart import request

from app.audit.refusals import Caller
from app.web.authentication import current_identity

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.audit.refusals import Refusals


def teller(refusals: Refusals) -> Callable[[Exception], None]:
    """Return what tells of an error that the current request is answered with."""

    def tell(error: Exception) -> None:
        identity = current_identity()
        caller = Caller(
            user_id=identity.user_id if identity else None,
            session_id=identity.session_id if identity else None,
            address=request.remote_addr,
        )
        ids = [*map(str, (request.view_args or {}).values()), request.args.get("before", "")]
        route = request.url_rule.rule if request.url_rule else "no route"
        refusals.tell(error, caller, ids=ids, asked=f"{request.method} {route}")

    return tell
