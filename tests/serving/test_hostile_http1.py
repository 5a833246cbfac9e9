"""What a peer can say that is not HTTP/1.1, or too much of it: an answer, and nobody else notices."""

import pytest
import trio

from nurseries.serving import ServingLimits
from tests.serving.house import serving
from tests.serving.peer import GET, UPGRADE

POST = b"POST /length HTTP/1.1\r\nHost: test\r\n"
UNANSWERED = 0

HOSTILE = {
    # no request line
    "garbage": (b"\x00\x01\x02\x03\r\n\r\n", 400),
    "words": (b"hello\r\n\r\n", 400),
    "tls": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\xaa" * 200 + b"\r\n\r\n", 400),
    "http09": (b"GET /\r\n\r\n", 400),
    "version": (b"GET / HTTP/9.9\r\nHost: test\r\n\r\n", 505),
    "version_junk": (b"GET / HTTP/1.1x\r\nHost: test\r\n\r\n", 400),
    "no_target": (b"GET HTTP/1.1\r\nHost: test\r\n\r\n", 400),
    "space_in_target": (b"GET /a b HTTP/1.1\r\nHost: test\r\n\r\n", 400),
    "target_not_ascii": (b"GET /\xff\xfe HTTP/1.1\r\nHost: test\r\n\r\n", 400),
    "target_nul": (b"GET /\x00 HTTP/1.1\r\nHost: test\r\n\r\n", 400),
    "target_relative": (b"GET a HTTP/1.1\r\nHost: test\r\n\r\n", 400),
    "target_query_only": (b"GET ?a=b HTTP/1.1\r\nHost: test\r\n\r\n", 400),
    "target_other_scheme": (b"GET gopher://x/ HTTP/1.1\r\nHost: test\r\n\r\n", 400),
    "target_absolute": (b"GET http://test/ HTTP/1.1\r\nHost: test\r\n\r\n", 200),
    "target_percent": (b"GET /%ff%00%zz HTTP/1.1\r\nHost: test\r\n\r\n", 404),
    "target_star": (b"OPTIONS * HTTP/1.1\r\nHost: test\r\n\r\n", 404),
    "target_dots": (b"GET /../../etc/passwd HTTP/1.1\r\nHost: test\r\n\r\n", 404),
    "target_long": (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: test\r\n\r\n", 431),
    "query_not_text": (b"GET /?%ff=%fe HTTP/1.1\r\nHost: test\r\n\r\n", 200),
    "connect": (b"CONNECT evil:443 HTTP/1.1\r\nHost: evil\r\n\r\n", 501),
    "method_unknown": (b"BREW / HTTP/1.1\r\nHost: test\r\n\r\n", 405),
    "method_not_token": (b"GE(T / HTTP/1.1\r\nHost: test\r\n\r\n", 400),
    "cleartext_http2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "h2c": (GET + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: !!!\r\n\r\n", 200),
    # headers
    "host_missing": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "host_twice": (GET + b"Host: other\r\n\r\n", 400),
    "header_no_colon": (GET + b"nonsense\r\n\r\n", 400),
    "header_space_before_colon": (GET + b"X : y\r\n\r\n", 400),
    "header_empty_name": (GET + b": y\r\n\r\n", 400),
    "header_nul": (GET + b"X: a\x00b\r\n\r\n", 400),
    "header_not_ascii_value": (GET + b"X: \xff\xfe\xc3\xa9\r\n\r\n", 200),
    "header_not_ascii_name": (GET + b"\xff: y\r\n\r\n", 400),
    "header_cookie_junk": (GET + b"Cookie: ;;;=\xff;=;a\r\n\r\n", 200),
    "headers_too_large": (GET + b"X: " + b"y" * 70_000 + b"\r\n\r\n", 431),
    "headers_never_end": (GET + b"X: y\r\n" * 20_000, 431),
    "headers_too_many": (GET + b"X: y\r\n" * 200 + b"\r\n", 431),
    "headers_folded": (GET + b"X: a\r\n b\r\n\r\n", 200),
    # bodies
    "length_and_chunked": (
        POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    "length_twice": (POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!", 400),
    "length_negative": (POST + b"Content-Length: -5\r\n\r\n", 400),
    "length_plus": (POST + b"Content-Length: +5\r\n\r\nhello", 400),
    "length_hex": (POST + b"Content-Length: 0x5\r\n\r\nhello", 400),
    "length_huge": (POST + b"Content-Length: " + b"9" * 5_000 + b"\r\n\r\n", 400),
    "length_over_limit": (POST + b"Content-Length: 99999999\r\n\r\n", 413),
    "length_over_limit_expects": (POST + b"Expect: 100-continue\r\nContent-Length: 99999999\r\n\r\n", 413),
    "coding_unknown": (POST + b"Transfer-Encoding: gzip\r\n\r\n", 501),
    "coding_twice": (POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n", 501),
    "chunk_size_junk": (POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n", 400),
    "chunk_size_negative": (POST + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n", 400),
    "chunk_size_huge": (POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 40 + b"\r\n", 400),
    "chunk_not_terminated": (POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhelloXX0\r\n\r\n", 400),
    "chunks_over_limit": (
        POST + b"Transfer-Encoding: chunked\r\n\r\n" + (b"10000\r\n" + b"x" * 65_536 + b"\r\n") * 20,
        413,
    ),
    # upgrades that are none
    "upgrade_without_key": (
        UPGRADE.partition(b"Sec-WebSocket-Key")[0] + b"\r\n",
        400,
    ),
    "upgrade_key_junk": (UPGRADE.replace(b"MDEy", b"!!!!") + b"\r\n", 400),
    "upgrade_key_short": (UPGRADE.replace(b"MDEyMzQ1Njc4OWFiY2RlZg==", b"MDEy") + b"\r\n", 400),
    "upgrade_key_twice": (UPGRADE + b"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n", 400),
    "upgrade_key_not_ascii": (UPGRADE.replace(b"MDEy", b"\xff\xfe\xfd\xfc") + b"\r\n", 400),
    "upgrade_version": (UPGRADE.replace(b": 13", b": 8") + b"\r\n", 400),
    "upgrade_post": (UPGRADE.replace(b"GET", b"POST") + b"\r\n", 405),
    "upgrade_http10": (UPGRADE.replace(b"HTTP/1.1", b"HTTP/1.0") + b"\r\n", 505),
    "upgrade_not_connected": (UPGRADE.replace(b"Connection: Upgrade", b"Connection: close") + b"\r\n", 426),
    "upgrade_two": (UPGRADE.replace(b"Upgrade: websocket", b"Upgrade: websocket, h2c") + b"\r\n", 426),
    "upgrade_junk": (UPGRADE.replace(b"Upgrade: websocket", b"Upgrade: (websocket,,;") + b"\r\n", 400),
    "upgrade_with_body": (UPGRADE + b"Content-Length: 3\r\n\r\nabc", 400),
    "upgrade_chunked": (UPGRADE + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "upgrade_extension_junk": (UPGRADE + b"Sec-WebSocket-Extensions: ;;;,,==\r\n\r\n", 101),
    "upgrade_protocol_junk": (UPGRADE + b"Sec-WebSocket-Protocol: ((,;\r\n\r\n", 400),
    "upgrade_protocol_not_ascii": (UPGRADE + b"Sec-WebSocket-Protocol: \xff\xfe\r\n\r\n", 400),
    "upgrade_header_not_ascii": (UPGRADE + b"X-Name: \xff\xfe\r\nOrigin: \xff\r\n\r\n", 101),
    "upgrade_header_control": (UPGRADE + b"X: \x01\r\n\r\n", 400),
    "upgrade_fields_too_many": (UPGRADE + b"X: y\r\n" * 200 + b"\r\n", 431),
    "upgrade_then_garbage": (UPGRADE + b"\r\n" + b"\xff" * 5_000, 101),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_request(name):
    """Every input is answered as it should be, and the bystander goes on."""
    data, expected = HOSTILE[name]
    async with serving() as house:
        async with house.connect() as peer:
            with trio.fail_after(30):
                await peer.send_anyway(data)
                assert await peer.status() == expected
        await house.wait_alone()


async def test_hostile_request_in_pieces():
    """Whatever byte the network cuts at, the answer is the same."""
    limits = ServingLimits(request_burst=100_000)
    async with serving(limits) as house:
        for name in ("header_nul", "length_and_chunked", "chunk_size_junk", "upgrade_key_junk"):
            data, expected = HOSTILE[name]
            async with house.connect() as peer:
                for index in range(len(data)):
                    await peer.send_anyway(data[index : index + 1])
                assert await peer.status() == expected


@pytest.mark.parametrize("headers", [b"", b"Content-Length: 100\r\n"])
async def test_answer_reaches_a_peer_that_still_sends(headers):
    """A refusal is not lost to the reset of a connection that was closed with unread bytes in it."""
    async with serving() as house, house.connect() as peer:
        await peer.send(b"NOT HTTP\r\n" + headers + b"\r\n")
        for _ in range(50):
            await peer.send(b"x" * 10_000)
        assert await peer.status() == 400
        assert await peer.stream.receive_some() == b""
