"""A database that goes away, loses connections, blocks or is slow, as clients over HTTP see it."""

from collections import Counter
from contextlib import contextmanager

import httpx
import psycopg
import pytest
import trio
import trio.testing
from psycopg.conninfo import conninfo_to_dict

from app.settings import PoolSettings
from app.web.problems import problem_of
from nurseries.errors import OutcomeUnknown
from tests.fixtures.house import running_server, signed_up
from tests.fixtures.sse import asked, watched
from tests.fixtures.vitals import at_rest, samples

LOAD = {"content": '{"events":200,"queries":200,"delta_bytes":8}', "agent": "load"}


class Fault:
    """What its owner can do to the database that a server uses."""

    def __init__(self, cluster, database):
        self._admin = cluster.admin
        self._name = conninfo_to_dict(database.owner)["dbname"]
        self.owner = database.owner

    def kill(self):
        """End every connection to it; return how many there were."""
        query = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = %s"
        return self._admin.execute(query, (self._name,)).fetchone()[0]

    def blocked(self):
        """Return how many statements wait in it for a lock."""
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND wait_event_type = 'Lock'"
        return self._admin.execute(query, (self._name,)).fetchone()[0]

    @contextmanager
    def away(self):
        """Let nobody connect to it, and nobody stay."""
        self._admin.execute(f"ALTER DATABASE {self._name} ALLOW_CONNECTIONS false")
        try:
            self.kill()
            yield
        finally:
            self._admin.execute(f"ALTER DATABASE {self._name} ALLOW_CONNECTIONS true")

    @contextmanager
    def locked(self, thread_id):
        """Hold a thread's row, so that whoever would change it waits."""
        with psycopg.connect(self.owner) as owner:
            owner.execute("SELECT 1 FROM threads WHERE thread_id = %s FOR UPDATE", (thread_id,))
            yield


@pytest.fixture
def fault(cluster, database):
    return Fault(cluster, database)


async def checked_out(http, count, waiting=0):
    """Return when so many connections are lent, and so many more are wanted."""
    with trio.fail_after(60):
        while True:
            values = samples((await http.get("/metrics")).text)
            if (values["nurseries_pool_checked_out"], values["nurseries_pool_waiting"]) == (count, waiting):
                return
            await trio.testing.wait_all_tasks_blocked(0.02)


async def ready(http):
    """Return when the server says that it is."""
    with trio.fail_after(60):
        while (await http.get("/health/ready")).status_code != 200:
            await trio.testing.wait_all_tasks_blocked(0.05)


async def test_without_its_database_a_server_says_so_and_comes_back(server, alice, fault):
    """Ready says why not, every route answers 503 with Retry-After, and nobody needs to restart anything."""
    thread = f"/v1/threads/{await alice.thread()}"
    with fault.away():
        for _ in range(7):
            answer = await alice.http.get("/health/ready")
            assert answer.status_code == 503
            assert "database unavailable" in answer.json()["reasons"]
            assert int(answer.headers["Retry-After"]) >= 1
        assert set(answer.json()["reasons"]) == {"database unavailable", "breaker open"}
        assert (await alice.http.get("/health/live")).status_code == 200
        for method, path, body in [
            ("GET", "/v1/threads", None),
            ("POST", "/v1/threads", {}),
            ("GET", thread, None),
            ("POST", f"{thread}/runs", {"content": "x"}),
            ("GET", f"{thread}/events", None),
            ("POST", "/v1/auth/login", {"email": alice.email, "password": "wrong"}),
        ]:
            answer = await alice.http.request(method, path, json=body)
            assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable"), (
                method,
                path,
            )
            assert int(answer.headers["Retry-After"]) >= 1
            assert "FATAL" not in answer.text
    await ready(alice.http)
    await at_rest(server)
    assert (await alice.run(thread.rpartition("/")[2], "time"))["status"] == "completed"
    assert len((await alice.http.get(f"{thread}/messages")).json()["messages"]) == 2


async def test_a_server_that_cannot_tell_who_asks_is_not_ready(server, database, cluster, fault):
    """Each part has connections and a breaker of its own: it is ready when accounts can be asked, too."""
    role = conninfo_to_dict(database.accounts)["user"]
    async with httpx.AsyncClient(base_url=server) as http:
        cluster.admin.execute(f'ALTER ROLE "{role}" NOLOGIN')
        try:
            fault.kill()
            answer = await http.get("/health/ready")
            assert (answer.status_code, answer.json()["reasons"]) == (503, ["database unavailable"])
        finally:
            cluster.admin.execute(f'ALTER ROLE "{role}" LOGIN')
        await ready(http)


async def test_a_run_goes_on_when_the_database_is_back(server, alice, fault):
    """What it had to say meanwhile waits; its reader gets every number once."""
    thread = f"/v1/threads/{await alice.thread()}"
    words = {"content": '{"events":3000,"queries":0}', "agent": "load"}
    async with watched(alice, f"{thread}/runs", words) as stream:
        first = await stream.until("message_delta")
        with fault.away():
            with trio.fail_after(60):
                while not samples((await alice.http.get("/metrics")).text)["nurseries_log_retries_total"]:
                    await trio.testing.wait_all_tasks_blocked(0.01)
        rest = await stream.rest()
    records = first + rest
    assert records[-1].type == "agent_completed"
    assert [record.id for record in records] == list(range(1, 3004))
    await ready(alice.http)
    await at_rest(server)


async def test_a_run_that_needs_the_database_fails_without_a_word_of_where_it_is(server, alice, fault):
    """Its end is in the log once there is one again, with a code and a sentence, and no host, path or role."""
    thread = f"/v1/threads/{await alice.thread()}"
    queries = {"content": '{"events":1,"queries":1000}', "agent": "load"}
    async with watched(alice, f"{thread}/runs", queries) as stream:
        await stream.until("agent_started")
        with fault.away():
            with trio.fail_after(60):
                while samples((await alice.http.get("/metrics")).text)["nurseries_requests"]:
                    await trio.testing.wait_all_tasks_blocked(0.01)
        (end,) = await stream.rest()
    assert end.type == "run_failed"
    assert end.data["payload"] == {
        "code": "database_unavailable",
        "message": "The database cannot be reached just now.",
    }
    await ready(alice.http)
    await at_rest(server)


async def test_connections_that_are_killed_are_a_503_or_nothing_at_all(server, alice, fault):  # four clients
    """While everything is in use: no 500, no thread twice, no run without an end, and then as before."""
    thread = f"/v1/threads/{await alice.thread()}"
    answers, killed = [], 0

    async def ask(method, path, expected, **request):
        nonlocal killed
        answer = await alice.http.request(method, path, **request)
        answers.append((answer.status_code, expected, answer.text))
        if answer.status_code == 503:
            assert int(answer.headers["Retry-After"]) >= 1
        if len(answers) % 6 == 0:
            killed += fault.kill()  # right then, whatever the others are in the middle of
        return answer.status_code == expected

    async def create(worker):
        for number in range(20):
            key = f"{worker}-{number}"
            request = {"json": {"title": key}, "headers": {"Idempotency-Key": key}}
            while not await ask("POST", "/v1/threads", 201, **request):
                pass

    async def read():
        for _ in range(20):
            await ask("GET", f"{thread}/messages", 200)
            await ask("PATCH", thread, 200, json={"title": "x"})

    async def run():
        for _ in range(10):
            await ask("POST", f"{thread}/runs?wait=true", 200, json=LOAD)

    async with trio.open_nursery() as nursery:
        for worker in ("a", "b"):
            nursery.start_soon(create, worker)
        nursery.start_soon(read)
        nursery.start_soon(run)
    assert killed > 20
    assert [answer for answer in answers if answer[0] not in {answer[1], 503, 429}] == []
    await ready(alice.http)
    await at_rest(server)
    titles = Counter(
        each["title"] for each in (await alice.http.get("/v1/threads?limit=200")).json()["threads"]
    )
    assert len(titles) == 41
    assert set(titles.values()) == {1}
    assert (await alice.run(await alice.thread(), "time"))["status"] == "completed"
    with psycopg.connect(fault.owner) as owner:
        assert owner.execute("SELECT count(*) FROM runs WHERE ended_at IS NULL").fetchone() == (0,)
        messages = owner.execute("SELECT error_message FROM runs").fetchall()
    assert all("FATAL" not in (message or "") for (message,) in messages)


async def test_who_uses_up_their_connections_waits_alone(server, alice, bob, fault):
    """The sixth of one user waits behind their five; another user does not notice, and all are served in the end."""
    thread = await alice.thread()
    answers = []

    async def rename(number):
        answers.append(
            (await alice.http.patch(f"/v1/threads/{thread}", json={"title": str(number)})).status_code
        )

    async with trio.open_nursery() as nursery, httpx.AsyncClient(base_url=server) as http:
        with fault.locked(thread):
            for number in range(8):
                nursery.start_soon(rename, number)
            await checked_out(http, 5, waiting=3)
            assert (await bob.run(await bob.thread(), "time"))["status"] == "completed"
            assert (await http.get("/health/ready")).status_code == 200
            assert answers == []
    assert answers == [200] * 8
    await at_rest(server)


async def test_who_waits_too_long_is_told_to_come_back(database, fault):
    """503 with Retry-After for a connection that does not come free."""
    pool = PoolSettings(per_user=1, wait_seconds=0.2)
    async with running_server(database.owner, pool=pool) as url, signed_up(url) as user:
        thread = await user.thread()
        with fault.locked(thread):
            async with asked(user, "PATCH", f"/v1/threads/{thread}", {"title": "x"}):
                async with httpx.AsyncClient(base_url=url) as http:
                    await checked_out(http, 1)
                answer = await user.http.get("/v1/threads")
                assert (answer.status_code, answer.json()["code"]) == (503, "pool_exhausted")
                assert int(answer.headers["Retry-After"]) >= 1
            await at_rest(url)
        assert (await user.http.get("/v1/threads")).status_code == 200


async def test_a_statement_that_takes_too_long_is_ended(database, fault):
    """504 by the database's own limit, and the connection is as good as before."""
    pool = PoolSettings(statement_seconds=1)
    async with running_server(database.owner, pool=pool) as url, signed_up(url) as user:
        thread = f"/v1/threads/{await user.thread(title='kept')}"
        with fault.locked(thread.rpartition("/")[2]):
            answer = await user.http.patch(thread, json={"title": "lost"})
            assert (answer.status_code, answer.json()["code"]) == (504, "statement_timeout")
            assert (await user.http.get(thread)).json()["title"] == "kept"
        await at_rest(url)
        assert (await user.http.patch(thread, json={"title": "changed"})).status_code == 200


async def test_a_client_that_leaves_during_a_query_leaves_no_query(server, alice, fault):
    """The database stops working for somebody who is gone, and the connection is given back."""
    thread = await alice.thread()
    with fault.locked(thread):
        async with (
            asked(alice, "PATCH", f"/v1/threads/{thread}", {"title": "x"}),
            httpx.AsyncClient(base_url=server) as http,
        ):
            await checked_out(http, 1)
            with trio.fail_after(60):
                while not fault.blocked():  # it was sent, and the database may take its time
                    await trio.lowlevel.checkpoint()
        await at_rest(server)
        assert fault.blocked() == 0
    assert (await alice.http.get(f"/v1/threads/{thread}")).json()["title"] == ""


def test_an_outcome_that_nobody_knows_is_not_our_fault_to_the_caller():
    """503 with Retry-After, since the same key finds out; nothing of the reason is told."""
    answer = problem_of(OutcomeUnknown("COMMIT was sent to 10.0.0.1 and not answered"))
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert "10.0.0.1" not in answer.response.data.decode()
