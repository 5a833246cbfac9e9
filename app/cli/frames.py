"""What a client reads from a socket, and how it knows that it read all of it once.

Written from the protocol, not shared with the server: a client that used the server's own codec could not
notice the server's mistakes.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final, Literal

import attrs
import msgspec

ENDINGS: Final = frozenset({"run_failed", "run_cancelled", "run_interrupted"})
"""Types that end a run whatever they say; `agent_completed` ends it only at depth 0."""


class Frame(msgspec.Struct, frozen=True):
    """Any frame from the server; `type` says which of the fields have a meaning.

    Events have a `seq` of 1 or more; control frames have none. A msgspec structure, not an attrs class:
    decoding one costs a quarter, and the load generator decodes thousands a second.
    """

    type: str
    # events
    event_id: str = ""
    seq: int = 0
    user_id: str = ""
    thread_id: str = ""
    run_id: str = ""
    timestamp: str = ""
    payload: dict[str, Any] = {}
    delivery_checksum: str = ""
    # connection_established
    connection_id: str = ""
    heartbeat_seconds: float = 0.0
    limits: dict[str, Any] = {}
    # accepted
    client_id: str | None = None
    duplicate: bool = False
    # subscribed
    after: int = 0
    last_seq: int = 0
    recovered: bool = True
    # error
    code: str = ""
    message: str = ""
    in_reply_to: str | None = None
    retry_after: float | None = None

    @property
    def is_event(self) -> bool:
        """Whether this is an event of a thread's log."""
        return self.seq > 0

    @property
    def ends_run(self) -> bool:
        """Whether nothing of this run may follow."""
        if self.type == "agent_completed":
            return not self.payload.get("depth")
        return self.type in ENDINGS


_decoder: Final = msgspec.json.Decoder(Frame)


def decode(raw: bytes) -> Frame:
    """Decode one frame.

    Raises:
        ValueError: not JSON, or not of the protocol's shape.
    """
    return _decoder.decode(raw)  # msgspec's errors are ValueErrors


def checksum(user_id: str, thread_id: str, run_id: str) -> str:
    """Return the `delivery_checksum` that an envelope of this run must carry."""
    return hashlib.sha256(f"{user_id}:{thread_id}:{run_id}".encode()).hexdigest()[:16]


@attrs.define
class Cursor:
    """The last event of one thread that this client has seen."""

    seq: int

    def step(self, seq: int) -> Literal["next", "repeated", "gap"]:
        """Say what an arriving event is, and move on if it is the next one."""
        if seq <= self.seq:
            return "repeated"
        if seq > self.seq + 1:
            return "gap"
        self.seq = seq
        return "next"
