"""`GET /v1/ws`: who may open a socket, and the session that serves it."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Final

import attrs

from app.accounts.identity import Identity  # noqa: TC001  # attrs resolves it for those who inspect the class
from app.audit.refusals import Caller
from app.errors import Forbidden, NotFound, Unauthenticated
from app.web.authentication import bearer_of, has_secret_parameter
from app.web.origins import allowed_origin
from app.web.problems import problem_of
from app.wire.codec import encode_frame
from app.wire.messages import ConnectionEstablished, SocketLimits
from nurseries.errors import CallerError, NurseriesError
from nurseries.ids import new_id
from nurseries.session import Session

if TYPE_CHECKING:
    from app.accounts.service import AccountService
    from app.audit.refusals import Refusals
    from app.chat.dispatch import Dispatch
    from app.tools.mcp.toolbox import Toolbox
    from nurseries.events import Outbox, Streams
    from nurseries.isolation import Isolation
    from nurseries.server import Server
    from nurseries.serving import Handshake, ServingLimits

PATH: Final = "/v1/ws"
SUBPROTOCOL: Final = "nurseries.v1"
TICKET_PREFIX: Final = "ticket."


class BadSubprotocol(CallerError):
    """The client does not offer the subprotocol that is spoken here."""

    code = "bad_subprotocol"


@attrs.frozen(kw_only=True)
class SocketBounds:
    """What one user may hold: sockets at once, and what waits for each of them."""

    sockets_per_user: int
    outbox_events: int
    outbox_bytes: int


class SocketEndpoint:
    """Answers every WebSocket handshake of the server."""

    def __init__(  # noqa: PLR0913  # the wiring of one endpoint
        self,
        service: AccountService,
        server: Server,
        streams: Streams,
        dispatch: Dispatch,
        isolation: Isolation,
        refusals: Refusals,
        toolbox: Toolbox,
        limits: ServingLimits,
        *,
        origins: tuple[str, ...],
        bounds: SocketBounds,
    ) -> None:
        self._service = service
        self._server = server
        self._streams = streams
        self._dispatch = dispatch
        self._isolation = isolation
        self._refusals = refusals
        self._toolbox = toolbox
        self._limits = limits
        self._origins = origins
        self._bounds = bounds

    async def __call__(self, handshake: Handshake) -> None:
        """Serve one socket from its handshake to its end."""
        caller = Caller(address=handshake.peer)
        try:
            # 1. Who is it? Everything that refuses is HTTP, before the upgrade.
            self._check(handshake)
            identity = await self._service.authenticate_socket(
                bearer=bearer_of(handshake.headers.get("authorization")),
                ticket=_ticket_of(handshake),
                address=handshake.peer,
            )
            caller = attrs.evolve(caller, user_id=identity.user_id, session_id=identity.session_id)
            self._server.refuse_when_draining()
            # 2. Is there a place? It is held until the socket ends.
            with self._server.sessions.place(identity.user_id, self._bounds.sockets_per_user):
                await self._serve(handshake, identity, caller)
        except NurseriesError as error:
            if handshake.answered:
                raise
            self._refusals.tell(error, caller, asked=f"GET {PATH}")
            response = problem_of(error)
            await handshake.refuse(
                response.status_code,
                body=await response.get_data(as_text=False),
                headers=[
                    (name.lower().encode(), value.encode())
                    for name, value in response.headers
                    if name in {"Retry-After", "WWW-Authenticate"}
                ],
            )

    async def _serve(self, handshake: Handshake, identity: Identity, caller: Caller) -> None:
        ended: list[str] = []
        session: Session | None = None

        def revoked(reason: str) -> None:
            ended.append(reason)
            if session is not None:
                session.close(4401, reason)

        # 3. From here on the session's end and all events of the user are heard, so none falls between.
        async with self._service.watching(identity, revoked):
            bounds = self._bounds
            with self._streams.listen(
                identity.user_id, events=bounds.outbox_events, size=bounds.outbox_bytes
            ) as outbox:
                session_id = new_id()
                self._greet(outbox, identity, session_id)
                socket = await handshake.accept(SUBPROTOCOL)
                session = Session(
                    socket,
                    outbox,
                    session_id=session_id,
                    isolation=self._isolation,
                    expires_in=identity.expires_in(datetime.now(UTC)),
                )
                if ended:
                    session.close(4401, ended[0])
                caller = attrs.evolve(caller, connection_id=session_id)
                # 4. The session lives until its socket closes, and what its tools have open lives no longer.
                async with self._toolbox.session(session_id):
                    try:
                        with self._server.sessions.entered(session):
                            await session.run(partial(self._dispatch, caller))
                    finally:
                        self._refusals.closed(session.closed_with, caller)

    def _check(self, handshake: Handshake) -> None:
        if handshake.path != PATH:
            raise NotFound("no such path")
        if has_secret_parameter(handshake.query):
            raise Unauthenticated("tokens are not taken from a query string")
        if not allowed_origin(handshake.origin, handshake.headers.get("host"), self._origins):
            raise Forbidden("this origin may not open a socket here")
        if SUBPROTOCOL not in handshake.subprotocols:
            raise BadSubprotocol(f"Sec-WebSocket-Protocol: {SUBPROTOCOL} must be offered")

    def _greet(self, outbox: Outbox, identity: Identity, session_id: str) -> None:
        """Queue the first frame, before any event can be."""
        frame = ConnectionEstablished(
            connection_id=session_id,
            user_id=identity.user_id,
            server_time=datetime.now(UTC),
            heartbeat_seconds=self._limits.heartbeat_seconds,
            limits=SocketLimits(
                message_bytes=self._limits.message_bytes,
                messages_per_minute=int(self._limits.frames_per_minute),
            ),
        )
        outbox.offer(encode_frame(frame))


def _ticket_of(handshake: Handshake) -> str | None:
    tickets = [name for name in handshake.subprotocols if name.startswith(TICKET_PREFIX)]
    if len(tickets) > 1:
        raise Unauthenticated("more than one ticket was offered")
    return tickets[0].removeprefix(TICKET_PREFIX) if tickets else None
