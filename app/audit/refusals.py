"""Which of the refusals that leave the process are worth a trace, and as what: one table, as in `app.errors`."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal

import attrs

from app.audit.entry import Suspicion
from app.audit.event import SecurityEvent
from app.errors import Busy, Forbidden, LoginLimited, NotFound, RateLimited, RegistrationClosed
from nurseries.errors import NurseriesError, PoolExhausted, TooManySessions
from nurseries.ids import is_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from app.audit.event import Detail, Kind
    from app.audit.trail import Trail
    from nurseries.context import UserContext
    from nurseries.request import Failure

KINDS: Final[Mapping[type[BaseException], Kind | None]] = MappingProxyType(
    {
        Forbidden: "forbidden",
        RegistrationClosed: None,  # everybody reads it who tries
        RateLimited: "rate_limited",
        LoginLimited: None,  # told by who knows the account
        Busy: "busy",
        TooManySessions: "sockets_limited",
        PoolExhausted: "pool_exhausted",
        BaseException: None,
    }
)
"""The most specific class wins."""

CLOSES: Final[Mapping[int, Kind]] = MappingProxyType(
    {1008: "socket_flooded", 1009: "frame_too_big", 1013: "socket_too_slow"}
)
"""Close codes by which a socket ends at a limit of ours."""


@attrs.frozen(kw_only=True)
class Caller:
    """Who asked, as far as that is known."""

    user_id: str | None = None
    session_id: str | None = None
    connection_id: str | None = None
    address: str | None = None

    def event(self, kind: Kind, **details: Detail) -> SecurityEvent:
        """Return an event about this caller."""
        return SecurityEvent(
            kind,
            self.user_id,
            session_id=self.session_id,
            connection_id=self.connection_id,
            address=self.address,
            details=details,
        )


class Refusals:
    """Tells the trail."""

    def __init__(self, trail: Trail) -> None:
        self._trail = trail

    def tell(self, error: BaseException, caller: Caller, *, ids: Iterable[str] = (), asked: str) -> None:
        """Tell what became of a request.

        Args:
            error: that it was answered with.
            caller: who made it.
            ids: that it named. Where it is answered that they do not exist, they may be somebody else's; that is
                found out when the answer has left, so that its time says nothing.
            asked: for people: a route, or the type of a frame.
        """
        if isinstance(error, NotFound):
            self._suspect(caller, ids, asked)
            return
        kind = next(KINDS[cls] for cls in type(error).__mro__ if cls in KINDS)
        if kind is not None:
            code = error.code if isinstance(error, NurseriesError) else ""
            self._trail.record(caller.event(kind, asked=asked, code=code))

    def closed(self, code: int | None, caller: Caller) -> None:
        """Tell that we closed a socket with a code, if that was for a limit."""
        kind = None if code is None else CLOSES.get(code)
        if kind is not None:
            self._trail.record(caller.event(kind))

    def failed(self, context: UserContext, failure: Failure) -> None:
        """Tell of a run that failed, if that was for a limit."""
        if failure.code == PoolExhausted.code:
            self._trail.record(
                SecurityEvent(
                    "pool_exhausted",
                    context.user_id,
                    connection_id=context.websocket_client_id,
                    thread_id=context.thread_id,
                    run_id=context.run_id,
                    details={"asked": "run", "code": failure.code},
                )
            )

    def limited(self, limit: Literal["rate", "connections"], address: str) -> None:
        """Tell that the serving layer turned somebody away."""
        kind: Kind = "rate_limited" if limit == "rate" else "connections_limited"
        self._trail.record(SecurityEvent(kind, address=address))

    def _suspect(self, caller: Caller, ids: Iterable[str], asked: str) -> None:
        # An operation's run id begins with that of the run: `<run>_<operation>_<8 hex>`.
        heads = (id_.partition("_")[0] for id_ in ids)
        found = tuple(head for head in heads if is_id(head))
        if caller.user_id is None or not found:
            return
        event = SecurityEvent(
            "foreign_id_asked",
            presented_by=caller.user_id,
            session_id=caller.session_id,
            connection_id=caller.connection_id,
            address=caller.address,
            details={"asked": asked},
        )
        self._trail.suspect(Suspicion(event, found))
