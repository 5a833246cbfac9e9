"""Handshakes and tokens under attack, end to end: hazards 1 to 5. An innocent bystander holds a socket."""

import base64
import json
import logging
import socket as sockets
import sys
from datetime import UTC, datetime

import attrs
import jwt
import pytest
import structlog
import trio
import trio.testing
from psycopg.conninfo import conninfo_to_dict

from app.accounts.settings import AccountSettings
from app.accounts.tokens import AccessTokens
from nurseries.ids import new_id
from tests.fixtures.access import House, bearer
from tests.fixtures.handshake import refused
from tests.fixtures.house import CHEAP, User, open_socket, running_server, signed_up
from tests.fixtures.sse import watched
from tests.fixtures.trail import trail

# -- 1 to 3: the handshake ---------------------------------------------------------------------------


async def test_1_foreign_lookalike_and_null_origins(house, alice):
    """403 before the upgrade, with a good token too; this server's own page and no page at all may."""
    host = house.url.removeprefix("http://")
    name, _, port = host.partition(":")
    for origin in (
        "https://evil.example",
        "null",
        "NULL",
        "",
        f"http://{host}.evil.example",
        f"http://evil.example/{host}",
        f"http://evil.example:{port}",
        f"http://evil.example?{host}",
        f"http://evil.example#{host}",
        f"http://{name}@evil.example:{port}",
        f"http://user@{host}",
        f"http://{name}:{int(port) + 1}",
        f"http://{name}",
        f"http://{host}/",
        f"ws://{host}",
        "file://",
        host,
        f"http://{host} https://evil.example",
    ):
        status, problem = await refused(house.url, [*bearer(alice.access_token), ("Origin", origin)])
        assert (status, problem["code"]) == (403, "forbidden"), origin
    for headers in ([], [("Origin", house.url)]):
        async with open_socket(house.url, [*bearer(alice.access_token), *headers]) as socket:
            assert (await socket.receive())["type"] == "connection_established"


async def test_2_a_token_in_the_query_string(house, alice, caplog):
    """401 for HTTP and for a socket, also beside a good header; and it is in no log."""
    ticket = (await alice.http.post("/v1/auth/ticket")).json()["ticket"]
    with caplog.at_level(logging.DEBUG), structlog.testing.capture_logs() as logged:
        for name, secret in (
            ("access_token", alice.access_token),
            ("token", alice.access_token),
            ("Access_Token", alice.access_token),
            ("access%5ftoken", alice.access_token),
            ("ticket", ticket),
            ("refresh_token", alice.refresh_token),
            ("anything", alice.access_token),
            ("anything", alice.access_token.replace(".", "%2e")),
            (alice.access_token, ""),
        ):
            answer = await alice.http.get(f"/v1/me?x=1&{name}={secret}")
            assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated"), name
            path = f"/v1/ws?{name}={secret}"
            assert (await refused(house.url, bearer(alice.access_token), path=path))[0] == 401, name
    clients = ("httpx", "httpcore", "trio-websocket")
    of_server = [record.getMessage() for record in caplog.records if not record.name.startswith(clients)]
    seen = repr(of_server) + repr(logged) + repr(await trail(house.admin))
    for secret in (alice.access_token, alice.refresh_token, ticket):
        assert secret not in seen
    async with open_socket(house.url, [], subprotocols=("nurseries.v1", f"ticket.{ticket}")) as socket:
        assert (await socket.receive())["user_id"] == alice.user_id  # it was not even looked at


@pytest.mark.parametrize(
    "offered",
    [(), ("nurseries.v2",), ("nurseries",), ("NURSERIES.V1",), ("ticket.x",), ("chat", "superchat")],
)
async def test_3_a_subprotocol_that_is_not_spoken_here(house, alice, offered):
    """400, and nothing of it comes back."""
    status, problem = await refused(house.url, bearer(alice.access_token), subprotocols=offered)
    assert (status, problem["code"]) == (400, "bad_subprotocol")
    assert not any(name in json.dumps(problem) for name in offered if name != "nurseries")


# -- 4 and 5: tokens ---------------------------------------------------------------------------------


async def test_4_a_token_out_of_its_time(house, alice):
    """Expired, or not yet valid: 401, though the session lives and the signature is ours."""
    now = int(datetime.now(UTC).timestamp())
    assert (await alice.http.get("/v1/me", headers=dict(bearer(house.token(alice))))).status_code == 200
    for times in (
        {"exp": now - 6},
        {"exp": now - 10**6},
        {"nbf": now + 60},
        {"iat": now + 60},
        {"exp": None},
        {"nbf": None},
        {"exp": str(now + 900)},
        {"exp": 1e300},
    ):
        await house.both_refuse(house.token(alice, **times))


async def test_4_a_token_that_expires_while_it_is_used(database):
    """The socket closes with 4401 and the stream ends, on time; the session goes on with its next token."""
    short = attrs.evolve(CHEAP, access_seconds=5, leeway_seconds=0)
    async with running_server(database.owner, accounts=short) as url, signed_up(url) as user:
        thread = await user.thread()
        async with user.socket() as socket, watched(user, f"/v1/threads/{thread}/events") as stream:
            assert await socket.close_code() == 4401
            assert await stream.rest() == []
        assert (await user.http.get("/v1/me")).status_code == 401
        renewed = await user.http.post("/v1/auth/refresh", json={"refresh_token": user.refresh_token})
        assert renewed.status_code == 200


def part(value) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def forgeries(house: House, user: User, url: str) -> dict[str, str]:
    """Return tokens that are none, by what is wrong with them."""
    other = b"another key, also of 32 bytes...."
    claims = jwt.decode(user.access_token, options={"verify_signature": False})
    head, body, signature = user.access_token.split(".")

    def signed(header, key=house.key):
        text = f"{part(header)}.{body}"
        mac = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
        return f"{text}.{base64.urlsafe_b64encode(mac.sign(text.encode(), key)).rstrip(b'=').decode()}"

    jwk = {"kty": "oct", "alg": "HS256", "k": base64.urlsafe_b64encode(other).decode()}
    return {
        "nothing": "x",
        "no signature": f"{head}.{body}.",
        "cut": user.access_token[:-4],
        "none": f"{part({'alg': 'none', 'typ': 'JWT'})}.{body}.",
        "None": f"{part({'alg': 'None'})}.{body}.",
        "none, signed": signed({"alg": "none"}),
        "RS256 over the same bytes": signed({"alg": "RS256"}),
        "HS384": signed({"alg": "HS384"}),
        "HS512 by the right key": jwt.encode(claims, house.key * 2, "HS512"),
        "another key": jwt.encode(claims, other, "HS256"),
        "the empty key": signed({"alg": "HS256"}, b""),
        "kid with a path": signed({"alg": "HS256", "kid": "../../../../dev/null"}, b""),
        "kid with a query": signed({"alg": "HS256", "kid": "x' UNION SELECT 'secret"}, b"secret"),
        "jku": signed({"alg": "HS256", "jku": f"{url}/keys"}, other),
        "x5u": signed({"alg": "HS256", "x5u": f"{url}/cert"}, other),
        "jwk": signed({"alg": "HS256", "jwk": jwk}, other),
        "other issuer": house.token(user, iss="elsewhere"),
        "other audience": house.token(user, aud="elsewhere"),
        "many audiences": house.token(user, aud=["nurseries", "elsewhere"]),
        "other type": house.token(user, typ="refresh"),
        "no type": house.token(user, typ=None),
        "no subject": house.token(user, sub=None),
        "no session": house.token(user, sid=None),
        "subject that is none": house.token(user, sub="admin"),
        "changed claims": f"{head}.{part({**claims, 'sub': new_id()})}.{signature}",
        "a refresh token": user.refresh_token,
        "long": "x" * 5000,
    }


async def test_5_a_token_that_is_not_one_of_ours(house, alice):
    """401 for each, over HTTP and at the socket's door."""
    for token in forgeries(house, alice, "http://127.0.0.1:1").values():
        await house.both_refuse(token)


async def test_5_a_bad_token_costs_no_io(house, alice, cluster, database):
    """No query: it is refused as fast while the database is away, where a good one gets 503. No file, no call to anybody."""
    role = conninfo_to_dict(database.accounts)["user"]
    touched: list[str] = []
    watching = False

    def hook(event, _arguments):
        if watching and event in {
            "open",
            "socket.getaddrinfo",
            "socket.connect",
            "subprocess.Popen",
            "urllib.Request",
        }:
            touched.append(event)

    sys.addaudithook(hook)  # there is no way to take it away again: it does nothing unless `watching`
    with sockets.create_server(("127.0.0.1", 0)) as attacker:
        attacker.setblocking(False)
        tokens = forgeries(house, alice, f"http://127.0.0.1:{attacker.getsockname()[1]}")
        reader = AccessTokens(house.key, AccountSettings())
        watching = True
        for token in tokens.values():
            with pytest.raises(Exception, match="token"):
                reader.read(token, datetime.now(UTC))
        watching = False
        cluster.admin.execute(f'ALTER ROLE "{role}" NOLOGIN')
        try:
            cluster.admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", [role]
            )
            for token in tokens.values():
                await house.both_refuse(token)
            answer = await alice.http.get("/v1/me")
            assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
        finally:
            cluster.admin.execute(f'ALTER ROLE "{role}" LOGIN')
        with pytest.raises(BlockingIOError):
            attacker.accept()
    assert touched == []
    with trio.fail_after(20):
        while (await alice.http.get("/v1/me")).status_code != 200:
            await trio.testing.wait_all_tasks_blocked(0.05)
