"""The security audit trail as an administrator reads it: what is in it, in which order, and what never is."""

import json
from contextlib import suppress

import httpx
import psycopg
import pytest
import trio
import trio_websocket

from app.audit.event import KINDS
from app.audit.settings import AuditSettings
from app.settings import PoolSettings, RunSettings
from nurseries.ids import new_id
from nurseries.serving import ServingLimits
from tests.fixtures.access import session_of
from tests.fixtures.handshake import refused
from tests.fixtures.house import PASSWORD, open_socket, running_server, signed_up
from tests.fixtures.trail import PATH, administrator, trail
from tests.fixtures.vitals import samples

PATIENT = json.dumps({"sleep_ms": 60_000})


@pytest.fixture
def owner(database):
    with psycopg.connect(database.owner, autocommit=True) as connection:
        yield connection


@pytest.fixture
async def admin(server, owner):
    """An administrator."""
    async with administrator(server, owner) as user:
        yield user


async def of_kind(admin, kind) -> list[dict]:
    return await trail(admin, kind=kind)


async def test_a_login_is_told_whole(server, admin, alice):
    """Every field of an entry; registration and login of the same person, from the address of the client."""
    entries = await trail(admin, user_id=alice.user_id)
    assert [entry["kind"] for entry in entries] == ["registered", "login"]
    login = entries[1]
    assert set(login) == {
        "id", "occurred_at", "last_at", "count", "kind", "user_id", "presented_by", "session_id", "connection_id",
        "thread_id", "run_id", "address", "details",
    }  # fmt: skip
    assert (login["count"], login["address"], login["presented_by"], login["details"]) == (
        1,
        "127.0.0.1",
        None,
        {},
    )
    assert login["session_id"]
    assert login["occurred_at"] == login["last_at"]
    assert (await alice.http.post("/v1/auth/logout")).status_code == 204
    *_, logout = await trail(admin, user_id=alice.user_id)
    assert (logout["kind"], logout["session_id"]) == ("logout", login["session_id"])


async def test_the_cursor_is_exact(server, admin):
    """Pages of one, of three and of all give the same entries; after the last there is nothing, until something happens."""
    for number in range(5):
        async with signed_up(server, f"u{number}@example.org"):
            pass
    everything = await trail(admin)
    ids = [entry["id"] for entry in everything]
    assert ids == sorted(set(ids))
    for limit in (1, 3):
        found, after = [], 0
        while page := (await admin.http.get(PATH, params={"after": after, "limit": limit})).json():
            assert len(page["entries"]) <= limit
            if not page["entries"]:
                break
            found += page["entries"]
            after = page["next"]
        assert found == everything
    idle = (await admin.http.get(PATH, params={"after": ids[-1]})).json()
    assert idle == {"entries": [], "next": ids[-1]}
    async with signed_up(server) as late:
        fresh = (await admin.http.get(PATH, params={"after": ids[-1]})).json()["entries"]
    assert [(entry["kind"], entry["user_id"]) for entry in fresh] == [
        ("registered", late.user_id),
        ("login", late.user_id),
    ]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("after=x", "after"),
        ("after=-1", "after"),
        ("after=", "after"),
        ("after=1.5", "after"),
        ("after=" + "9" * 30, "after"),
        ("limit=0", "limit"),
        ("limit=201", "limit"),
        ("limit=x", "limit"),
        ("kind=nothing", "kind"),
        ("user_id=me", "user_id"),
        ("since=1", "since"),
    ],
)
async def test_a_bad_cursor_is_refused(server, admin, query, field):
    """422 with the name of the parameter."""
    answer = await admin.http.get(f"{PATH}?{query}")
    assert (answer.status_code, answer.json()["code"], answer.json()["field"]) == (
        422,
        "invalid_field",
        field,
    )


async def test_only_an_administrator_reads_it_and_whoever_else_tries_is_in_it(server, admin, alice):
    """401 for nobody, 403 for somebody, on every page of the administrators; each such try is an entry."""
    paths = [PATH, "/v1/admin/status", "/v1/admin/nurseries", "/v1/admin/isolation"]
    async with httpx.AsyncClient(base_url=server) as http:
        assert (await http.get(PATH)).status_code == 401
    for path in paths:
        answer = await alice.http.get(path)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    (first,) = await of_kind(admin, "forbidden")
    assert (first["user_id"], first["details"]["asked"]) == (alice.user_id, f"GET {PATH}")
    assert first["session_id"]


async def test_failed_logins_name_no_address_of_anybody(server, admin, alice):
    """A wrong password and an unknown account: who it was is told by the id, or by a pseudonym that repeats."""
    unknown = "somebody.private@example.org"
    async with httpx.AsyncClient(base_url=server) as http:
        for email in (alice.email, unknown, unknown.upper()):
            answer = await http.post("/v1/auth/login", json={"email": email, "password": "wrong password"})
            assert answer.status_code == 401
    first, second = await of_kind(admin, "login_failed")
    assert (first["user_id"], second["user_id"]) == (alice.user_id, None)
    assert first["details"]["account"] != second["details"]["account"]
    assert (await admin.http.get("/v1/admin/status")).json()["audit_trail"]["counted"] == 1


async def test_reuse_across_users_is_told_with_both(server, admin, alice, bob):
    """A ticket of one with the token of another: refused, and the entry says whose it was and who came with it."""
    ticket = (await alice.http.post("/v1/auth/ticket")).json()["ticket"]
    offered = ("nurseries.v1", f"ticket.{ticket}")
    bearer = [("Authorization", f"Bearer {bob.access_token}")]
    assert (await refused(server, bearer, subprotocols=offered))[0] == 401
    (entry,) = await of_kind(admin, "credential_reused")
    assert (entry["user_id"], entry["presented_by"]) == (alice.user_id, bob.user_id)
    assert entry["address"] == "127.0.0.1"
    assert (await refused(server, subprotocols=offered))[0] == 401  # and it is used up
    (entry,) = await of_kind(admin, "ticket_reused")
    assert entry["user_id"] == alice.user_id


async def test_refresh_reuse_is_told(server, admin, alice):
    """With the session that it ended."""
    for status in (200, 400):
        answer = await alice.http.post("/v1/auth/refresh", json={"refresh_token": alice.refresh_token})
        assert answer.status_code == status
    (entry,) = await of_kind(admin, "refresh_token_reused")
    (login,) = await trail(admin, kind="login", user_id=alice.user_id)
    assert (entry["user_id"], entry["session_id"]) == (alice.user_id, login["session_id"])


async def test_foreign_ids_are_told_and_absent_ones_are_not(server, admin, alice, bob):
    """Over HTTP and over the socket; the owner, who asked, and for which of their things."""
    thread, own = await alice.thread(), await bob.thread()
    run = (await alice.run(thread, "time"))["run_id"]
    message = (await alice.http.get(f"/v1/threads/{thread}/messages")).json()["messages"][0]["message_id"]
    assert (await bob.http.get(f"/v1/threads/{new_id()}")).status_code == 404
    assert (await bob.http.get(f"/v1/threads/{own}/runs/{new_id()}")).status_code == 404
    assert await of_kind(admin, "foreign_id_asked") == []
    asked = [
        ("thread", thread, f"/v1/threads/{thread}"),
        ("run", run, f"/v1/threads/{own}/runs/{run}"),
        ("message", message, f"/v1/threads/{own}/messages?before={message}"),
        ("thread", thread, f"/v1/threads?before={thread}"),
    ]
    for _, _, path in asked:
        assert (await bob.http.get(path)).status_code == 404
    entries = await of_kind(admin, "foreign_id_asked")
    assert {(each["user_id"], each["presented_by"], each["thread_id"]) for each in entries} == {
        (alice.user_id, bob.user_id, thread)
    }
    assert [(each["details"]["what"], each["details"]["id"]) for each in entries] == [
        each[:2] for each in asked[:3]
    ]
    assert entries[0]["details"]["asked"] == "GET /v1/threads/<thread_id>"
    assert entries[1]["run_id"] == run
    assert (await admin.http.get("/v1/admin/status")).json()["audit_trail"][
        "counted"
    ] == 1  # the thread again


async def test_foreign_ids_in_frames_are_told(server, admin, alice, bob):
    """With the connection that they came through."""
    thread = await alice.thread()
    async with open_socket(server, [("Authorization", f"Bearer {bob.access_token}")]) as socket:
        connection = (await socket.receive())["connection_id"]
        await socket.send(type="subscribe", thread_id=thread, after=0)
        assert (await socket.receive())["code"] == "not_found"
    (entry,) = await of_kind(admin, "foreign_id_asked")
    assert (entry["user_id"], entry["presented_by"]) == (alice.user_id, bob.user_id)
    assert (entry["connection_id"], entry["details"]["asked"]) == (connection, "subscribe")
    assert entry["session_id"] == session_of(bob)


async def test_limits_that_are_hit_are_told(database, owner):
    """The rate of an address, too many sockets, too many runs in a thread, a flood and a frame that is too big."""
    limits = ServingLimits(
        requests_per_second=1000, frames_per_minute=60, frame_burst=10, flood_seconds=0.2, message_bytes=2000
    )
    async with (
        running_server(
            database.owner, serving=limits, sockets_per_user=2, runs=RunSettings(queued_per_thread=1)
        ) as url,
        administrator(url, owner) as admin,
        signed_up(url) as user,
    ):
        thread = await user.thread()
        order = {"content": PATIENT, "agent": "load"}
        statuses = [
            (await user.http.post(f"/v1/threads/{thread}/runs", json=order)).status_code for _ in range(3)
        ]
        assert statuses == [202, 202, 429]
        async with user.socket() as big, user.socket() as fast:
            bearer = [("Authorization", f"Bearer {user.access_token}")]
            assert (await refused(url, bearer))[0] == 429
            await big.send(type="ping", padding="x" * 3000)
            assert await big.close_code() == 1009
            async with trio.open_nursery() as nursery:
                nursery.start_soon(flood, fast)
                assert await fast.close_code() == 1008
                nursery.cancel_scope.cancel()
        for kind, asked in (
            ("rate_limited", "POST /v1/threads/<thread_id>/runs"),
            ("sockets_limited", "GET /v1/ws"),
            ("frame_too_big", None),
            ("socket_flooded", None),
        ):
            (entry,) = await of_kind(admin, kind)
            assert entry["user_id"] == user.user_id, kind
            assert entry["details"].get("asked") == asked, kind
            assert entry["address"] == "127.0.0.1", kind


async def test_a_peer_that_closes_with_our_code_hit_no_limit(server, admin, alice):
    """Whoever says 1008 themselves has flooded nobody."""
    async with alice.socket() as socket:
        await socket.connection.aclose(1008, "I was too fast")
    async with alice.socket() as socket:
        await socket.send(type="ping")
        await socket.receive()
    assert await of_kind(admin, "socket_flooded") == []


async def test_a_flood_of_requests_is_two_entries_and_not_a_thousand(database, owner):
    """Refused by the address's rate: the first, and at the end of the window all others together."""
    limits = ServingLimits(request_burst=30, requests_per_second=0.01)
    settings = {"serving": limits, "audit": AuditSettings(window_seconds=3600)}  # ended by the server's end
    async with running_server(database.owner, **settings) as url, administrator(url, owner) as admin:
        async with httpx.AsyncClient(base_url=url) as http:
            while (await http.get("/health/live")).status_code == 200:
                pass
            for _ in range(200):
                assert (await http.get("/health/live")).status_code == 429
    rows = owner.execute(
        "SELECT count, address, user_id FROM audit WHERE kind = 'rate_limited' ORDER BY id"
    ).fetchall()
    assert rows == [(1, "127.0.0.1", None), (200, "127.0.0.1", None)]
    assert admin.user_id


async def test_an_exhausted_pool_is_told(database, owner):
    """A call that finds no connection in time is answered 503, and is an entry of its user."""
    pool = PoolSettings(size=1, overflow=0, per_user=1, wait_seconds=0.2)
    async with (
        running_server(database.owner, pool=pool) as url,
        administrator(url, owner) as admin,
        signed_up(url) as user,
    ):
        thread, answers = await user.thread(), []
        with owner.transaction():
            owner.execute("LOCK TABLE threads")

            async def ask():
                answers.append(await user.http.get(f"/v1/threads/{thread}"))
                owner.execute("ROLLBACK")  # whoever was refused lets the other one go on

            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                nursery.start_soon(ask)
        refused, served = answers
        assert (refused.status_code, refused.json()["code"], served.status_code) == (
            503,
            "pool_exhausted",
            200,
        )
        (entry,) = await of_kind(admin, "pool_exhausted")
        assert entry["user_id"] == user.user_id


async def test_no_secret_is_ever_in_it(server, admin, owner):
    """Passwords, tokens, tickets, mail addresses and what people say: none of it, whatever happens to them."""
    email, said = "very.private@example.org", "the canary sings at midnight"
    async with signed_up(server, email) as user, signed_up(server) as other:
        thread = await user.thread(title=said)
        await user.run(thread, said)
        ticket = (await user.http.post("/v1/auth/ticket")).json()["ticket"]
        for _ in range(2):
            bearer = [("Authorization", f"Bearer {other.access_token}")]
            await refused(server, bearer, subprotocols=("nurseries.v1", f"ticket.{ticket}"))
        await other.http.patch(f"/v1/threads/{thread}", json={"title": said})
        await other.http.get(f"/v1/threads/{thread}?access_token={user.access_token}")
        for password in (PASSWORD + "x", "wrong"):
            await other.http.post("/v1/auth/login", json={"email": email, "password": password})
        pair = (await user.http.post("/v1/auth/refresh", json={"refresh_token": user.refresh_token})).json()
        await user.http.post("/v1/auth/refresh", json={"refresh_token": user.refresh_token})
        await user.http.post("/v1/auth/register", json={"email": email, "password": PASSWORD})
        secrets = [
            email,
            "private",
            said,
            "canary",
            ticket,
            PASSWORD,
            *pair.values(),
            user.access_token,
            user.refresh_token,
        ]
    entries = await trail(admin)
    assert {"foreign_id_asked", "login_failed", "refresh_token_reused", "credential_reused"} <= {
        entry["kind"] for entry in entries
    }
    rows = str(owner.execute("SELECT audit::text FROM audit").fetchall()) + json.dumps(entries)
    for secret in secrets:
        assert str(secret) not in rows or secret in {"Bearer", 900}


async def test_the_end_of_a_server_loses_nothing(database, owner):
    """What was counted and what waited is in the table when it has ended."""
    async with running_server(database.owner) as url:
        async with httpx.AsyncClient(base_url=url) as http:
            for _ in range(6):
                answer = await http.post("/v1/auth/login", json={"email": "a@b", "password": "wrong"})
                assert answer.status_code == 401
    counts = owner.execute("SELECT count FROM audit WHERE kind = 'login_failed' ORDER BY id").fetchall()
    assert counts == [(1,), (5,)]


async def test_how_much_waits_can_be_seen(server, admin):
    """In the status and in the metrics."""
    await trail(admin)
    status = (await admin.http.get("/v1/admin/status")).json()["audit_trail"]
    assert (status["waiting"], status["lost"], status["retries"]) == (0, 0, 0)
    assert status["written"] >= 2
    values = samples((await admin.http.get("/metrics")).text)
    assert (values["nurseries_audit_waiting"], values["nurseries_audit_lost_total"]) == (0, 0)
    assert values["nurseries_audit_entries_total"] == status["written"]


def test_every_kind_is_explained():
    """docs/operations.md says of each kind what it means."""
    from pathlib import Path

    text = (Path(__file__).parents[3] / "docs" / "operations.md").read_text()
    assert {kind for kind in KINDS if f"`{kind}`" not in text} == set()


async def flood(socket) -> None:
    """Send until the server has had enough."""
    with suppress(trio_websocket.ConnectionClosed):
        while True:
            await socket.send(type="ping")
