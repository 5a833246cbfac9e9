"""The frames of the protocol that are not events: what a client may send, and what answers it alone.

msgspec structs rather than attrs classes: only they can refuse unknown fields and tell the frame's type by
its `type` field. Events have their own class, `nurseries.events.Envelope`.
"""

from __future__ import annotations

from datetime import datetime  # noqa: TC003  # msgspec reads the annotations at run time
from typing import Annotated, Literal

import msgspec

OnConflict = Literal["reject", "enqueue", "interrupt", "rollback"]
OnDisconnect = Literal["continue", "cancel"]


class ClientFrame(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type"):
    """Base of what a client sends."""


class UserMessage(ClientFrame, frozen=True, tag="user_message"):
    """Start a run. `client_id` is the idempotency key."""

    thread_id: str
    content: str
    agent: str | None = None
    on_conflict: OnConflict = "enqueue"
    on_disconnect: OnDisconnect = "continue"
    client_id: str | None = None


class Subscribe(ClientFrame, frozen=True, tag="subscribe"):
    """Replay what came after `after` in a thread, then go on live."""

    thread_id: str
    after: Annotated[int, msgspec.Meta(ge=0)] = 0


class Cancel(ClientFrame, frozen=True, tag="cancel"):
    """Cancel a run."""

    run_id: str


class Approve(ClientFrame, frozen=True, tag="approve"):
    """Let a tool call be made that waits for it. `run_id` is that of the event which asked."""

    run_id: str
    call_id: str
    note: str | None = None


class Deny(ClientFrame, frozen=True, tag="deny"):
    """Refuse a tool call that waits for it. The model is told the note."""

    run_id: str
    call_id: str
    note: str | None = None


class Ping(ClientFrame, frozen=True, tag="ping"):
    """Ask for a pong: for clients that cannot see the protocol's own pings."""


AnyClientFrame = UserMessage | Subscribe | Cancel | Approve | Deny | Ping


class ServerFrame(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type"):
    """Base of what a server sends to one socket."""


class SocketLimits(msgspec.Struct, frozen=True):
    """What a client may send: bytes a frame, frames a minute."""

    message_bytes: int
    messages_per_minute: int


class ConnectionEstablished(ServerFrame, frozen=True, tag="connection_established"):
    """The first frame of a socket."""

    connection_id: str
    user_id: str
    server_time: datetime
    heartbeat_seconds: float
    limits: SocketLimits


class Accepted(ServerFrame, frozen=True, tag="accepted"):
    """The message is durable. `duplicate` is always written, so it has no default here."""

    run_id: str
    duplicate: bool
    client_id: str | None = None


class Subscribed(ServerFrame, frozen=True, tag="subscribed"):
    """The replay follows, unless it could not be `recovered`: then go on from `last_seq`."""

    thread_id: str
    after: int
    last_seq: int
    recovered: bool


class Pong(ServerFrame, frozen=True, tag="pong"):
    """The answer to a ping."""


class ErrorFrame(ServerFrame, frozen=True, tag="error"):
    """An error that ends nothing. `in_reply_to` is the frame's `client_id` if it had one, else its type."""

    code: str
    message: str
    in_reply_to: str | None = None
    retry_after: float | None = None
