"""Tokens and tickets: whoever presents somebody else's gets nothing by it, and the audit trail knows."""

from contextlib import AsyncExitStack
from itertools import permutations

import jwt
import pytest
import trio
import trio_websocket

from tests.fixtures.house import open_socket

UPGRADE = [
    ("Connection", "Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
]


async def refusal(user, *headers, ticket=None):
    """Ask for a socket with these headers, and return the status of the refusal."""
    offered = "nurseries.v1" if ticket is None else f"nurseries.v1, ticket.{ticket}"
    answer = await user.http.get("/v1/ws", headers=[*UPGRADE, ("Sec-WebSocket-Protocol", offered), *headers])
    return answer.status_code


def bearer(token):
    return ("Authorization", f"Bearer {token}")


@pytest.fixture
async def six(serving, meet):
    """Six users, each with a thread in which a run is going on, until it is cancelled."""
    meet(7)
    async with serving(agents="tests.scenarios.agents") as served, AsyncExitStack() as stack:
        users = [await stack.enter_async_context(served.user()) for _ in range(6)]
        things = {}
        for user in users:
            thread = await user.thread()
            body = {"content": "hello", "agent": "notebook"}
            run = (await user.http.post(f"/v1/threads/{thread}/runs", json=body)).json()["run_id"]
            things[user.user_id] = (thread, run)
        yield served, users, things


def _pairs(users):
    """Return each user with each other one."""
    return {(one.user_id, other.user_id) for one, other in permutations(users, 2)}


async def _told(served, kind):
    """Return the pairs of users that the audit trail names: whose it was, and who came with it."""
    return {(owner, presented_by) for owner, presented_by, _ in await served.trail(kind)}


async def test_a_token_of_one_user_does_not_become_anothers(six):
    """In all thirty pairs, a token with the other's name in it is refused, by HTTP and by sockets, whoever signed it."""
    served, users, _ = six
    (key,) = served.owner.execute("SELECT value FROM secrets WHERE name = 'access_token_key'").fetchone()
    refused = []
    for one, other in permutations(users, 2):
        claims = jwt.decode(one.access_token, options={"verify_signature": False}) | {"sub": other.user_id}
        head, _, signature = one.access_token.split(".")
        _, body, _ = other.access_token.split(".")
        for token in (f"{head}.{body}.{signature}", jwt.encode(claims, key, algorithm="HS256")):
            answer = await one.http.get("/v1/me", headers=[bearer(token)])
            refused.append((answer.status_code, await refusal(one, bearer(token))))
    assert refused == [(401, 401)] * 30 * 2
    assert await _told(served, "credential_reused") == _pairs(users)
    for user in users:
        assert (await user.http.get("/v1/me")).json()["user_id"] == user.user_id


async def test_a_ticket_of_one_user_is_refused_with_the_token_of_another(six):
    """In all thirty pairs no socket opens, and the ticket is spent."""
    served, users, _ = six
    for one, other in permutations(users, 2):
        ticket = (await one.http.post("/v1/auth/ticket")).json()["ticket"]
        assert await refusal(other, bearer(other.access_token), ticket=ticket) == 401
        assert await refusal(one, bearer(one.access_token), ticket=ticket) == 401
    assert await _told(served, "credential_reused") == _pairs(users)


async def test_a_ticket_opens_one_socket_and_it_is_its_own_users(six):
    """Fifty tries at once with one ticket of each user: one socket, with that user's name in its first frame."""
    served, users, _ = six
    for user in users:
        ticket = (await user.http.post("/v1/auth/ticket")).json()["ticket"]
        opened, refused = [], []

        async def attempt(ticket=ticket, opened=opened, refused=refused):
            offered = ("nurseries.v1", f"ticket.{ticket}")
            try:
                async with open_socket(served.url, [], subprotocols=offered) as socket:
                    opened.append(await socket.receive())
            except* trio_websocket.ConnectionRejected as rejected:
                refused += [each.status_code for each in rejected.exceptions]

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for _ in range(50):
                    nursery.start_soon(attempt)
        assert [frame["user_id"] for frame in opened] == [user.user_id]
        assert refused == [401] * 49


async def test_a_token_of_one_user_finds_nothing_of_anothers(six):
    """In all thirty pairs, thread, messages, events and run are as if they were not there, and the run goes on."""
    served, users, things = six
    for one in users:
        async with one.socket() as socket:
            for other in users:
                if other is one:
                    continue
                thread, run = things[other.user_id]
                for method, path in (
                    ("GET", f"/v1/threads/{thread}"),
                    ("GET", f"/v1/threads/{thread}/messages"),
                    ("GET", f"/v1/threads/{thread}/events"),
                    ("GET", f"/v1/threads/{thread}/runs/{run}"),
                    ("POST", f"/v1/threads/{thread}/runs/{run}/cancel"),
                    ("DELETE", f"/v1/threads/{thread}"),
                ):
                    answer = await one.http.request(method, path)
                    assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), path
                for frame in (
                    {"type": "cancel", "run_id": run},
                    {"type": "subscribe", "thread_id": thread, "after": 0},
                    {"type": "user_message", "thread_id": thread, "content": "hello"},
                ):
                    await socket.send(**frame)
                    await socket.send(type="ping")
                    frames = await socket.until("pong")
                    assert {each["user_id"] for each in frames if "seq" in each} <= {one.user_id}
                    answers = [(each["type"], each.get("code")) for each in frames if "seq" not in each]
                    assert answers == [("error", "not_found"), ("pong", None)]
    states = served.owner.execute("SELECT DISTINCT status FROM runs").fetchall()
    assert states == [("running",)]
    assert await _told(served, "foreign_id_asked") == _pairs(users)
    assert len(served.vitals.runs) == 6
