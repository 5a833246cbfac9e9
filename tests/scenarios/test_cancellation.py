"""Cancelled at every moment, each flow of a user leaves nothing behind and everybody else alone."""

import json
from collections import Counter
from collections.abc import AsyncIterator
from uuid import uuid4

import attrs
import psycopg
import pytest
import trio

from app.main import serve
from app.settings import Settings
from app.web.health import Vitals
from nurseries.testing.places import name_of, tasks_below
from tests.fixtures.house import CHEAP, PASSWORD, open_socket
from tests.scenarios.stage import Stage

TOOLS = "calculate 6*7\nsearch"
"""Two tools at once: one that computes, one that asks the database."""

ODD_SESSIONS = """
    SELECT count(*) FROM sessions WHERE 1 <> (
        SELECT count(*) FROM refresh_tokens t WHERE t.session_id = sessions.session_id AND t.used_at IS NULL
    )
"""

SESSIONS = """
    SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
STORY = "SELECT string_agg(lines, E'\\n' ORDER BY first_seq) FROM events WHERE thread_id = %s"


@pytest.fixture
async def stage(serving, lease_ledger) -> AsyncIterator[Stage]:
    """A server with somebody who plays and somebody who stands by."""
    async with (
        serving(agents="tests.scenarios.patient_agents") as served,
        served.user() as user,
        served.user() as bystander,
        bystander.socket() as socket,
        trio.open_nursery() as nursery,
    ):
        await user.http.aclose()
        await bystander.http.aclose()
        stage = Stage(served, user, lease_ledger)
        nursery.start_soon(stage.watch, socket)
        await stage.ready()
        yield stage
        nursery.cancel_scope.cancel()


async def test_register(stage, cancel_everywhere):
    """An account is there or it is not."""
    emails = []

    async def register(_):
        emails.append(f"{uuid4().hex}@example.org")
        status, _ = await stage.call("POST", "/v1/auth/register", {"email": emails[-1], "password": PASSWORD})
        assert status == 201

    async def look(take):
        await stage.nothing_left(take)
        assert stage.count("SELECT count(*) FROM users WHERE email = %s", emails[-1]) in {0, 1}

    await cancel_everywhere(register, look, prepare=stage.take)


async def test_login(stage, cancel_everywhere):
    """A session is there with its refresh token, or is not there."""

    async def login(_):
        status, _ = await stage.call(
            "POST", "/v1/auth/login", {"email": stage.user.email, "password": PASSWORD}
        )
        assert status == 200

    async def look(take):
        await stage.nothing_left(take)
        assert stage.count(ODD_SESSIONS) == 0

    await cancel_everywhere(login, look, prepare=stage.take)


async def test_refresh(stage, cancel_everywhere):
    """A refresh token is used and has its successor, or is as it was; no session is left with none or with two."""

    async def prepare():
        credentials = {"email": stage.user.email, "password": PASSWORD}
        _, pair = await stage.call("POST", "/v1/auth/login", credentials)
        return attrs.evolve(await stage.take(), token=pair["refresh_token"])

    async def refresh(take):
        status, _ = await stage.call("POST", "/v1/auth/refresh", {"refresh_token": take.token})
        assert status == 200

    async def look(take):
        await stage.nothing_left(take)
        assert stage.count(ODD_SESSIONS) == 0

    await cancel_everywhere(refresh, look, prepare=prepare)


async def test_open_a_socket(stage, cancel_everywhere):
    """A place, an outbox, a watch on the session, three tasks: all are given back."""

    async def open_socket(_):
        async with stage.socket() as line:
            await line.connection.say_goodbye()

    await cancel_everywhere(open_socket, stage.nothing_left, prepare=stage.take)


async def test_turn(stage, cancel_everywhere):
    """A message, an answer with two tools at once, over a socket whose end is the run's end."""

    async def turn(take):
        async with stage.socket() as line:
            await line.send(
                type="user_message",
                thread_id=take.thread_id,
                content=f"{TOOLS} {take.canary}",
                on_disconnect="cancel",
            )
            await line.until("agent_completed")

    await cancel_everywhere(turn, stage.nothing_left, prepare=stage.take)


@pytest.mark.parametrize("agent", ["assistant", "bookkeeper"])
async def test_cancel_a_run_at_every_moment(stage, cancel_everywhere, agent):
    """The run's own scope, as its user cancels it: whatever the run is doing, it says so once and all is given back."""

    async def turn(take):
        async with trio.open_nursery() as owner:
            await stage.submit(take, TOOLS, agent, owner)
        assert take.run.status in {"completed", "cancelled"}

    def cancel(take):
        if take.run is not None:
            take.run.cancel("requested")

    await cancel_everywhere(turn, stage.nothing_left, prepare=stage.take, cancel=cancel)


async def test_cancel(stage, cancel_everywhere):
    """The call that cancels, cancelled: the run goes on, or ends once; never half."""

    async def cancel(take):
        path = f"/v1/threads/{take.thread_id}/runs/{take.run.run_id}/cancel"
        status, answer = await stage.call("POST", path, token=stage.user.access_token)
        assert (status, answer["status"]) == (200, "cancelled")

    await cancel_everywhere(cancel, stage.nothing_left_of_patient_run, prepare=stage.patient_run)


async def test_rollback(stage, cancel_everywhere):
    """A message that takes the place of a run under way: each of the two ends once, whenever the socket closes."""

    async def replace(take):
        async with stage.socket() as line:
            await line.send(
                type="user_message",
                thread_id=take.thread_id,
                content=f"{TOOLS} {take.canary}",
                on_conflict="rollback",
                on_disconnect="cancel",
            )
            await line.until("agent_completed")

    async def look(take):
        await stage.nothing_left_of_patient_run(take)
        if "completed" in stage.statuses(take).values():
            said = "SELECT count(*) FROM messages WHERE thread_id = %s AND run_id = %s"
            assert stage.count(said, take.thread_id, take.run.run_id) == 0

    await cancel_everywhere(replace, look, prepare=stage.patient_run)


async def test_drain(database, nursery, cancel_everywhere, lease_ledger):
    """A drain that is itself cancelled: runs have their end in the log, sockets are closed, nothing is left."""
    with psycopg.connect(database.owner, autocommit=True) as owner:
        before = tasks_now()
        settings = Settings(
            port=0,
            database_url=database.owner,
            agents="tests.scenarios.patient_agents",
            accounts=CHEAP,
            drain_seconds=0,
        )

        async def prepare():
            house = House(settings, owner)
            house.url = await nursery.start(house.serve)
            nursery.start_soon(house.visit)
            await house.at_work.wait()
            return house

        async def drain(house):
            house.vitals.server.stop()
            await house.ended.wait()

        async def look(house):
            with trio.fail_after(30):
                await house.ended.wait()
                await house.left.wait()
            assert house.code == 1012
            lease_ledger.check()
            with trio.move_on_after(30):
                while owner.execute(SESSIONS).fetchall() or tasks_now() != before:
                    await trio.testing.wait_all_tasks_blocked()
            assert owner.execute(SESSIONS).fetchall() == [], "a session with the database is left"
            assert tasks_now() == before
            [(lines,)] = owner.execute(STORY, (house.thread_id,)).fetchall()
            story = [json.loads(line)["type"] for line in lines.split("\n")]
            assert story == ["run_queued", "agent_started", "message_delta", "run_cancelled"]
            assert owner.execute("SELECT count(*) FROM runs WHERE ended_at IS NULL").fetchone() == (0,)

        await cancel_everywhere(
            drain,
            look,
            prepare=prepare,
            below=lambda house: house.task,
            cancel=lambda house: house.scope.cancel(),
        )


@attrs.define
class House:
    """A whole server with a run at work and a socket open, made for one drain.

    Attributes:
        task: runs it.
        scope: of all of it.
        ended: the server has.
        at_work: the run has begun.
        left: the visitor's socket is closed.
        code: how it was closed.
    """

    settings: Settings
    owner: psycopg.Connection
    url: str = ""
    thread_id: str = ""
    vitals: Vitals | None = None
    task: trio.lowlevel.Task | None = None
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    ended: trio.Event = attrs.field(factory=trio.Event)
    at_work: trio.Event = attrs.field(factory=trio.Event)
    left: trio.Event = attrs.field(factory=trio.Event)
    code: int = 0

    async def serve(self, *, task_status):
        """Run the server until it is stopped or cancelled."""
        self.task = trio.lowlevel.current_task()
        with self.scope:
            await serve(self.settings, lambda urls, _: task_status.started(urls[0]), look=self._look)
        self.ended.set()

    async def visit(self):
        """Open a socket, have a run begin, and wait for the close."""
        email = f"{uuid4().hex}@example.org"
        user_id = await self.vitals.service.register(email, PASSWORD)
        pair = await self.vitals.service.login(email, PASSWORD, address="192.0.2.1")
        self.thread_id = str(uuid4())
        self.owner.execute(
            "INSERT INTO threads (thread_id, user_id) VALUES (%s, %s)", (self.thread_id, user_id)
        )
        async with open_socket(self.url, [("Authorization", f"Bearer {pair.access_token}")]) as socket:
            await socket.send(type="user_message", thread_id=self.thread_id, content="wait", agent="patient")
            await socket.until("message_delta")
            self.at_work.set()
            self.code = await socket.close_code()
        self.left.set()

    def _look(self, vitals):
        self.vitals = vitals


def tasks_now():
    """Return how many tasks there are of each function."""
    return Counter(name_of(task) for task in tasks_below(trio.lowlevel.current_root_task()))
