"""Credentials used twice or by others, and sessions that begin and end: hazards 6 to 11, beside an innocent bystander."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
import jwt
import pytest
import trio
import trio_websocket

from app.accounts.service import AccountService
from nurseries.postgres.pool import PoolLimits, open_pool
from nurseries.postgres.scoped import Database
from tests.fixtures.access import House, bearer, session_of
from tests.fixtures.handshake import refused
from tests.fixtures.house import CHEAP, PASSWORD, Socket, User, open_socket
from tests.fixtures.sse import watched
from tests.fixtures.trail import trail

PATIENT = json.dumps({"sleep_ms": 60_000})


async def kinds_of(house: House, user: User) -> list[str]:
    return [entry["kind"] for entry in await trail(house.admin, user_id=user.user_id)]


# -- 6 to 9: used twice, used by others -----------------------------------------------------------------


async def test_6_a_ticket_replayed_by_fifty_at_once(house, alice):
    """Exactly one socket opens, the others get 401, and the trail knows of all of them."""
    ticket = (await alice.http.post("/v1/auth/ticket")).json()["ticket"]
    offered = ("nurseries.v1", f"ticket.{ticket}")
    opened, refusals = [], []

    async def present() -> None:
        try:
            async with open_socket(house.url, [], subprotocols=offered) as socket:
                opened.append((await socket.receive())["user_id"])
        except* trio_websocket.ConnectionRejected as group:
            refusals.extend(error.status_code for error in group.exceptions)

    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(present)
    assert (opened, refusals) == ([alice.user_id], [401] * 49)
    (entry,) = await trail(house.admin, kind="ticket_reused")
    counted = (await house.admin.http.get("/v1/admin/status")).json()["audit_trail"]["counted"]
    assert (entry["user_id"], entry["session_id"], counted) == (alice.user_id, session_of(alice), 48)


async def test_7_a_token_or_ticket_presented_as_somebody_elses(house, alice, bob):
    """401 whichever way round, and the trail says whose it was and who came with it."""
    ticket = (await alice.http.post("/v1/auth/ticket")).json()["ticket"]
    offered = ("nurseries.v1", f"ticket.{ticket}")
    assert (await refused(house.url, bearer(bob.access_token), subprotocols=offered))[0] == 401
    assert (await refused(house.url, subprotocols=offered))[0] == 401  # and it is spent
    # Even whoever could sign: A's session under B's name, and B's under A's.
    await house.both_refuse(house.token(bob, session=session_of(alice)))
    await house.both_refuse(house.token(alice, session=session_of(bob)))
    reused = await trail(house.admin, kind="credential_reused")
    assert [(entry["user_id"], entry["presented_by"]) for entry in reused] == [
        (alice.user_id, bob.user_id),
        (bob.user_id, alice.user_id),
    ]
    assert {entry["address"] for entry in reused} == {"127.0.0.1"}
    for user in (alice, bob):
        assert (await user.http.get("/v1/me")).json()["user_id"] == user.user_id


async def test_7_two_tokens_in_one_request(house, alice, bob):
    """401, over HTTP as on a socket: neither the first nor the last of two headers says who it is."""
    tokens = (alice.access_token, bob.access_token)
    for first, last in (tokens, tokens[::-1]):
        headers = bearer(first) + bearer(last)
        async with httpx.AsyncClient(base_url=house.url) as http:
            assert (await http.get("/v1/me", headers=headers)).status_code == 401
        assert (await refused(house.url, headers))[0] == 401


async def test_8_a_refresh_token_used_twice(house, alice):
    """400 `invalid_grant`; the whole family is out at once: tokens, tickets, sockets and streams."""
    thread = await alice.thread()
    ticket = (await alice.http.post("/v1/auth/ticket")).json()["ticket"]
    body = {"refresh_token": alice.refresh_token}
    async with alice.socket() as first, alice.socket() as second:
        async with watched(alice, f"/v1/threads/{thread}/events") as stream:
            successor = (await alice.http.post("/v1/auth/refresh", json=body)).json()
            reused = await alice.http.post("/v1/auth/refresh", json=body)
            assert (reused.status_code, reused.json()["error"]) == (400, "invalid_grant")
            assert [await first.close_code(), await second.close_code()] == [4401, 4401]
            assert await stream.rest() == []
    for token in (alice.access_token, successor["access_token"]):
        await house.both_refuse(token)
    assert (await refused(house.url, subprotocols=("nurseries.v1", f"ticket.{ticket}")))[0] == 401
    again = await alice.http.post("/v1/auth/refresh", json={"refresh_token": successor["refresh_token"]})
    assert (again.status_code, again.json()["error"]) == (400, "invalid_grant")
    assert "refresh_token_reused" in await kinds_of(house, alice)


async def test_9_two_refreshes_at_the_same_time(house, alice):
    """One successor, however many ask; the others were second uses, so the family ends."""
    body, answers = {"refresh_token": alice.refresh_token}, []

    async def refresh(http) -> None:
        answers.append(await http.post("/v1/auth/refresh", json=body))

    async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
        for _ in range(10):
            http = await stack.enter_async_context(httpx.AsyncClient(base_url=house.url, timeout=30))
            nursery.start_soon(refresh, http)
    assert sorted(answer.status_code for answer in answers) == [200] + [400] * 9
    session = session_of(alice)
    successors = "SELECT count(*) FROM refresh_tokens WHERE session_id = %s AND used_at IS NULL"
    assert house.owner.execute(successors, [session]).fetchone() == (1,)
    (winner,) = [answer.json() for answer in answers if answer.status_code == 200]
    await house.both_refuse(winner["access_token"])


# -- 10 and 11: the end and the beginning of a session ---------------------------------------------------


@asynccontextmanager
async def everything_open(house: House, user: User) -> AsyncIterator[list]:
    """Open all that a session can have open: three sockets, one of them busy, and two streams."""
    thread = await user.thread()
    async with AsyncExitStack() as stack:
        three = [await stack.enter_async_context(user.socket()) for _ in range(3)]
        await three[0].send(type="user_message", thread_id=thread, content=PATIENT, agent="load")
        await three[0].until("agent_started")
        streams = [
            await stack.enter_async_context(watched(user, f"/v1/threads/{thread}/events", Last_Event_ID="9"))
            for _ in range(2)
        ]
        yield [*three, *streams]
    await at_rest_but_for_runs(house, user, thread)


async def at_rest_but_for_runs(house: House, user: User, thread: str) -> None:
    """The run that was started to go on without its socket is still there, and nobody listens for the user."""
    status = house.owner.execute("SELECT status FROM runs WHERE thread_id = %s", [thread]).fetchone()
    assert status == ("running",)


async def all_end(opened: list) -> None:
    for each in opened:
        if isinstance(each, Socket):
            assert await each.close_code() == 4401
        else:
            await each.rest()


async def test_10_logout_ends_every_socket_of_the_session_at_once(house, alice, bob):
    """All sockets and streams of that login; the user's other login and other users go on."""
    pair = (await bob.http.post("/v1/auth/login", json={"email": alice.email, "password": PASSWORD})).json()
    async with open_socket(house.url, bearer(pair["access_token"])) as elsewhere, bob.socket() as other:
        await elsewhere.receive()
        async with everything_open(house, alice) as opened:
            assert (await alice.http.post("/v1/auth/logout")).status_code == 204
            await all_end(opened)
        await elsewhere.send(type="ping")
        assert (await elsewhere.until("pong"))[-1] == {"type": "pong"}
        await other.send(type="ping")
        assert await other.receive() == {"type": "pong"}
    await house.both_refuse(alice.access_token)
    assert "logout" in await kinds_of(house, alice)


@pytest.mark.parametrize("how", ["logout", "disable"])
async def test_10_what_another_worker_ends_is_ended_here(house, alice, database, how):
    """A logout or a disabling by another process on the same database closes what is open in this one."""
    async with open_pool(database.accounts, PoolLimits(size=1, overflow=0)) as pool:
        worker = AccountService(Database(pool, borrower="accounts"), house.key, CHEAP)
        identity = await worker.authenticate_bearer(alice.access_token)
        async with everything_open(house, alice) as opened:
            if how == "logout":
                await worker.logout(identity)
            else:
                await worker.users.disable(alice.email)
            await all_end(opened)
    await house.both_refuse(alice.access_token)
    login = await alice.http.post("/v1/auth/login", json={"email": alice.email, "password": PASSWORD})
    assert login.status_code == (200 if how == "logout" else 401)


async def test_11_no_session_is_fixed_before_a_login(house, alice, bob):
    """Whatever comes with a login, a token, a cookie, a header: the session that it opens has a new id."""
    known = session_of(bob)
    seen = {known}
    for headers in (
        dict(bearer(bob.access_token)),
        {"Cookie": f"session={known}; sid={known}"},
        {"X-Session-Id": known, "X-Request-Id": known},
    ):
        async with httpx.AsyncClient(base_url=house.url, headers=headers) as http:
            answer = await http.post("/v1/auth/login", json={"email": alice.email, "password": PASSWORD})
        assert "Set-Cookie" not in answer.headers
        claims = jwt.decode(answer.json()["access_token"], options={"verify_signature": False})
        assert claims["sub"] == alice.user_id
        assert claims["sid"] not in seen
        seen.add(claims["sid"])
    smuggled = {"email": alice.email, "password": PASSWORD, "session_id": known}
    assert (await bob.http.post("/v1/auth/login", json=smuggled)).status_code == 422
