"""Everything a peer can send in HTTP/2 that it should not: the server, its log and the others stay as they were."""

import struct

import hpack
import pytest
import trio
from h2.errors import ErrorCodes

from tests.serving.http2_peer import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    PRIORITIZED,
    PRIORITY,
    PUSH,
    REQUEST,
    RST,
    SETTINGS,
    SETUP,
    WINDOW,
    h2frame,
    headers,
    quick,
    request,
)
from tests.serving.peer import Peer

HOSTILE = {
    "no_preface": b"GET / HTTP/1.1\r\nHost: test\r\n\r\n",
    "preface_cut": PREFACE[:10] + b"xxxx",
    "garbage": PREFACE + b"\xff" * 500,
    "frame_unknown": SETUP + h2frame(0xBB, 0xFF, 1, b"x" * 100),
    "frame_huge": SETUP + h2frame(DATA, 0, 1, b"", length=2**24 - 1),
    "data_on_idle_stream": SETUP + h2frame(DATA, 0, 1, b"x"),
    "data_on_stream_0": SETUP + h2frame(DATA, 0, 0, b"x"),
    "data_late": SETUP + headers(*REQUEST) + h2frame(DATA, 0, 1, b"late"),
    "data_padding": SETUP
    + headers(*request("/length", "POST"), flags=END_HEADERS)
    + h2frame(DATA, PADDED, 1, b"\xffx"),
    "headers_on_stream_0": SETUP + headers(*REQUEST, stream=0),
    "headers_even_stream": SETUP + headers(*REQUEST, stream=2),
    "headers_backwards": SETUP + headers(*REQUEST, stream=5) + headers(*REQUEST, stream=3),
    "headers_twice": SETUP + headers(*REQUEST, flags=END_HEADERS) + headers(*REQUEST, flags=END_HEADERS),
    "headers_hpack_junk": SETUP + h2frame(HEADERS, END_STREAM | END_HEADERS, 1, b"\xff" * 100),
    "headers_hpack_index": SETUP + h2frame(HEADERS, END_STREAM | END_HEADERS, 1, b"\xbf\xff\xff\x03"),
    "headers_table_bomb": SETUP
    + h2frame(
        HEADERS, END_STREAM | END_HEADERS, 1, b"\x40\x01a\x7f\x81\x1f" + b"x" * 4_000 + b"\xbe" * 10_000
    ),
    "headers_no_pseudo": SETUP + headers(("x", "y")),
    "headers_no_method": SETUP + headers(*REQUEST[1:]),
    "headers_no_path": SETUP + headers(REQUEST[0], *REQUEST[2:]),
    "headers_two_paths": SETUP + headers(*REQUEST, (":path", "/other")),
    "headers_unknown_pseudo": SETUP + headers(*REQUEST[:3], (":nonsense", "x")),
    "headers_pseudo_late": SETUP + headers(("x", "y"), *REQUEST),
    "headers_empty_path": SETUP + headers(*request("")),
    "headers_uppercase": SETUP + headers(*REQUEST, ("X-Upper", "y")),
    "headers_connection": SETUP + headers(*REQUEST, ("connection", "close")),
    "headers_transfer_encoding": SETUP + headers(*REQUEST, ("transfer-encoding", "chunked")),
    "headers_control_bytes": SETUP + headers(*REQUEST, ("x", "a\r\nb: c")),
    "headers_empty_name": SETUP + headers(*REQUEST, ("", "y")),
    "headers_depend_on_self": SETUP
    + h2frame(
        HEADERS,
        END_STREAM | END_HEADERS | PRIORITIZED,
        1,
        b"\0\0\0\x01\x10" + hpack.Encoder().encode(REQUEST),
    ),
    "length_not_a_number": SETUP + headers(*request("/length", "POST"), ("content-length", "five")),
    "length_signed": SETUP + headers(*request("/length", "POST"), ("content-length", "+5")),
    "length_twice": SETUP
    + headers(*request("/length", "POST"), ("content-length", "5"), ("content-length", "6")),
    "length_wrong": SETUP
    + headers(*request("/length", "POST"), ("content-length", "5"), flags=END_HEADERS)
    + h2frame(DATA, END_STREAM, 1, b"too long"),
    "continuation_alone": SETUP + h2frame(CONTINUATION, END_HEADERS, 1, b""),
    "continuation_flood": SETUP
    + headers(*REQUEST, flags=END_STREAM)
    + h2frame(CONTINUATION, 0, 1, b"x") * 2_000,
    "continuation_interrupted": SETUP
    + headers(*REQUEST, flags=END_STREAM)
    + h2frame(PING, 0, 0, b"12345678"),
    "settings_odd_length": PREFACE + h2frame(SETTINGS, 0, 0, b"12345"),
    "settings_on_stream": PREFACE + h2frame(SETTINGS, 0, 1),
    "settings_ack_with_payload": SETUP + h2frame(SETTINGS, ACK, 0, b"123456"),
    "settings_push_2": PREFACE + h2frame(SETTINGS, 0, 0, struct.pack("!HI", 2, 2)),
    "settings_window_huge": PREFACE + h2frame(SETTINGS, 0, 0, struct.pack("!HI", 4, 2**32 - 1)),
    "settings_frame_size": PREFACE + h2frame(SETTINGS, 0, 0, struct.pack("!HI", 5, 1)),
    "settings_flood": SETUP + h2frame(SETTINGS) * 5_000,
    "ping_short": SETUP + h2frame(PING, 0, 0, b"x"),
    "ping_on_stream": SETUP + h2frame(PING, 0, 1, b"12345678"),
    "ping_flood": SETUP + h2frame(PING, 0, 0, b"12345678") * 5_000,
    "window_zero": SETUP + h2frame(WINDOW, 0, 0, b"\0\0\0\0"),
    "window_overflow": SETUP + h2frame(WINDOW, 0, 0, b"\x7f\xff\xff\xff") * 2,
    "window_of_idle_stream": SETUP + h2frame(WINDOW, 0, 7, b"\0\0\0\x01"),
    "rst_of_idle_stream": SETUP + h2frame(RST, 0, 7, b"\0\0\0\x08"),
    "rst_on_stream_0": SETUP + h2frame(RST, 0, 0, b"\0\0\0\x08"),
    "priority_short": SETUP + h2frame(PRIORITY, 0, 1, b"x"),
    "priority_on_self": SETUP + h2frame(PRIORITY, 0, 1, b"\0\0\0\x01\x10"),
    "window_flood": SETUP
    + headers(*request("/wait"))
    + h2frame(WINDOW, 0, 0, b"\0\0\0\x01") * 2_500
    + h2frame(WINDOW, 0, 1, b"\0\0\0\x01") * 2_500,
    "priority_storm": SETUP
    + b"".join(h2frame(PRIORITY, 0, 2 * i + 1, struct.pack("!IB", 2 * i + 3, 16)) for i in range(5_000)),
    "push_promise": SETUP + h2frame(PUSH, END_HEADERS, 1, b"\0\0\0\x02"),
    "goaway": SETUP + h2frame(GOAWAY, 0, 0, b"\0" * 8),
    "goaway_short": SETUP + h2frame(GOAWAY, 0, 0, b"\0"),
    "empty_data_flood": SETUP
    + headers(*request("/length", "POST"), flags=END_HEADERS)
    + h2frame(DATA, 0, 1, b"") * 5_000,
    "rapid_reset": SETUP
    + b"".join(
        headers(*request("/wait"), stream=2 * i + 1) + h2frame(RST, 0, 2 * i + 1, b"\0\0\0\x08")
        for i in range(3_000)
    ),
    "streams_too_many": SETUP + b"".join(headers(*request("/wait"), stream=2 * i + 1) for i in range(200)),
}

GOES_ON, HUNG_UP = "goes on", "hung up"
OUTCOMES = {
    **dict.fromkeys(["frame_unknown", "data_late"], GOES_ON),
    **dict.fromkeys(["no_preface", "preface_cut", "goaway"], HUNG_UP),
    **dict.fromkeys(
        ["garbage", "frame_huge", "settings_odd_length", "ping_short", "priority_short", "goaway_short"],
        ErrorCodes.FRAME_SIZE_ERROR,
    ),
    **dict.fromkeys(["settings_window_huge", "window_overflow"], ErrorCodes.FLOW_CONTROL_ERROR),
    **dict.fromkeys(
        ["settings_flood", "ping_flood", "priority_storm", "empty_data_flood", "rapid_reset", "window_flood"],
        ErrorCodes.ENHANCE_YOUR_CALM,
    ),
}
"""What is not named here is a PROTOCOL_ERROR."""


async def outcome(peer: Peer) -> str | ErrorCodes:
    """Return how a connection ends: with the code of its GOAWAY, without one, or not, as the answer to a ping says."""
    try:
        while True:
            head = await peer.take(9)
            payload = await peer.take(int.from_bytes(head[:3], "big"))
            if head[3] == GOAWAY:
                return ErrorCodes(int.from_bytes(payload[4:8], "big"))
            if head[3] == PING and payload == b"are you?":
                return GOES_ON
    except EOFError:
        return HUNG_UP


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_bytes(name, certificates, caplog):
    """Every input has its answer, and leaves the server, its log and the bystander as they were."""
    async with quick(certificates) as house:
        async with house.connect("h2") as peer:
            with trio.fail_after(30):
                await peer.send_anyway(HOSTILE[name])
                await peer.send_anyway(h2frame(PING, 0, 0, b"are you?"))
                assert await outcome(peer) == OUTCOMES.get(name, ErrorCodes.PROTOCOL_ERROR)
        await house.wait_alone()
    assert not caplog.records
