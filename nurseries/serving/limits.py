"""Every deadline and bound of the serving layer, in one frozen value."""

from __future__ import annotations

from typing import Any

import attrs


def _positive(_limits: object, attribute: attrs.Attribute[Any], value: float) -> None:
    if not value > 0:
        raise ValueError(f"{attribute.name} must be positive, not {value!r}")


@attrs.frozen
class ServingLimits:
    """What a peer may take, and for how long it may take it.

    Every field bounds one thing. Times are seconds, sizes are bytes, and each one must be positive.

    Attributes:
        connections: open connections, all addresses together; one more is answered 503.
        connections_per_address: open connections of one address (IPv6: one /64); one more is answered
            429. A trusted proxy is exempt, since it speaks for many.
        tls_seconds: for the TLS handshake.
        head_seconds: from the first byte of a request to the end of its headers, then 408; and for a new
            connection to say anything, then it is closed.
        head_bytes: request line and headers together; more is 431.
        head_fields: header fields of one request; more is 431.
        body_seconds: from the end of the headers to the end of the body; then 408.
        body_bytes: of one request; more is 413.
        keep_alive_seconds: that an idle connection is kept for its next request.
        pipelined_bytes: that may wait behind a request being answered; more closes the connection, since
            a reader that stopped would not see the peer leave.
        write_seconds: for the peer to take the next 64 KiB; then the connection is dropped.
        requests_per_second: HTTP requests of one address (IPv6: one /64); more is 429 with Retry-After.
        request_burst: requests that may come at once before that rate applies.
        rate_addresses: addresses whose rate is remembered; the least recently seen is forgotten first.
        http2_streams: requests at the same time on one HTTP/2 connection.
        http2_control_frames: HTTP/2 frames other than HEADERS and DATA that may come at once; a tenth of
            this number a second is restored. More ends the connection with ENHANCE_YOUR_CALM. A
            WINDOW_UPDATE counts only beyond one for each KiB of data that was sent.
        handshake_seconds: for the handler to accept or refuse a WebSocket; then 503.
        message_bytes: of one WebSocket message, all its fragments together; more closes with 1009.
        frames_per_minute: WebSocket frames of any kind from one peer; more is read only at this rate.
        frame_burst: frames that may come at once before that rate applies.
        flood_seconds: that a peer may stay above the rate; then it is closed with 1008.
        heartbeat_seconds: of silence before a ping; as many again and the socket is closed with 4408. Every
            TCP peer is probed in the same way by the system, in whole seconds, and dropped when it is gone.
        close_seconds: for the closing handshake, and for a peer that must still read why it was refused.
        deflate: whether permessage-deflate is offered. Off: it costs memory for every socket.
    """

    connections: int = attrs.field(default=10_000, validator=_positive)
    connections_per_address: int = attrs.field(default=1_000, validator=_positive)
    tls_seconds: float = attrs.field(default=10.0, validator=_positive)
    head_seconds: float = attrs.field(default=10.0, validator=_positive)
    head_bytes: int = attrs.field(default=64 * 1024, validator=_positive)
    head_fields: int = attrs.field(default=128, validator=_positive)
    body_seconds: float = attrs.field(default=30.0, validator=_positive)
    body_bytes: int = attrs.field(default=1024 * 1024, validator=_positive)
    keep_alive_seconds: float = attrs.field(default=15.0, validator=_positive)
    pipelined_bytes: int = attrs.field(default=64 * 1024, validator=_positive)
    write_seconds: float = attrs.field(default=10.0, validator=_positive)
    requests_per_second: float = attrs.field(default=120.0, validator=_positive)
    request_burst: int = attrs.field(default=120, validator=_positive)
    rate_addresses: int = attrs.field(default=16_384, validator=_positive)
    http2_streams: int = attrs.field(default=64, validator=_positive)
    http2_control_frames: int = attrs.field(default=1_000, validator=_positive)
    handshake_seconds: float = attrs.field(default=10.0, validator=_positive)
    message_bytes: int = attrs.field(default=128 * 1024, validator=_positive)
    frames_per_minute: float = attrs.field(default=600.0, validator=_positive)
    frame_burst: int = attrs.field(default=120, validator=_positive)
    flood_seconds: float = attrs.field(default=10.0, validator=_positive)
    heartbeat_seconds: float = attrs.field(default=20.0, validator=_positive)
    close_seconds: float = attrs.field(default=3.0, validator=_positive)
    deflate: bool = False
