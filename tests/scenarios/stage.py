"""A server on which one scenario is played hundreds of times, and what must be true each time it is over.

The scenario's connection is a socket pair, served by the server's own code in a nursery of the scenario: cancelling
the scenario is to the server what a disconnect, a cancelled call and a shutdown are. Somebody else holds a real
socket open all the while.
"""

import json
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import attrs
import h11
import trio
from websockets.client import ClientProtocol
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from app.chat.calls import open_call
from app.chat.run import Ask, Run
from app.cli.connection import Connection
from nurseries.serving.peers import UNIX
from nurseries.testing import LeaseLedger
from nurseries.testing.places import name_of, tasks_below
from tests.fixtures.house import Socket, User

ENDINGS = frozenset({"agent_completed", "run_failed", "run_cancelled", "run_interrupted"})
PATIENCE_SECONDS = 30
STATES = """
    SELECT state FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND (state <> 'idle' OR xact_start IS NOT NULL)
        AND usename NOT LIKE '%_audit_login'
"""
"""Sessions that are at work; but for the trail's, which writes a little later what it was told."""

LOCKS = """
    SELECT locktype, mode FROM pg_locks JOIN pg_stat_activity USING (pid)
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND usename NOT LIKE '%_audit_login'
"""
OF_OTHERS = """
    SELECT 'message' FROM messages WHERE content LIKE %(canary)s AND user_id <> %(user)s::uuid
    UNION ALL SELECT 'event' FROM events WHERE lines LIKE %(canary)s AND user_id <> %(user)s::uuid
"""


@attrs.define
class Take:
    """One time that a scenario is played.

    Attributes:
        thread_id: a conversation of the scenario's user for this time alone.
        canary: a word that nobody else has said.
        run: what the scenario is about, once there is one.
        token: what the scenario needs to have.
    """

    thread_id: str
    canary: str
    run: Run | None = None
    token: str = ""


class Stage:
    """A server, the user whose scenario is played, and a bystander.

    Attributes:
        served: the server.
        user: plays.
        overheard: every frame that the bystander's socket got.
    """

    def __init__(self, served, user: User, ledger: LeaseLedger) -> None:
        self.served = served
        self.vitals = served.vitals
        self.user = user
        self.overheard: list[dict] = []
        self._ledger = ledger
        self._tasks: Counter[str] = Counter()
        self._locks: Counter[tuple] = Counter()

    async def ready(self) -> None:
        """Take what there is for the baseline, when nobody but the bystander is connected."""
        while self.vitals.listener.statistics().connections > 1:
            await trio.testing.wait_all_tasks_blocked()
        await trio.testing.wait_all_tasks_blocked(0.05)
        self._tasks, self._locks = self._tasks_now(), self._locks_now()

    async def take(self) -> Take:
        """Make what one time needs."""
        thread_id = str(uuid4())
        self.served.owner.execute(
            "INSERT INTO threads (thread_id, user_id) VALUES (%s, %s)", (thread_id, self.user.user_id)
        )
        return Take(thread_id, f"canary{uuid4().hex}")

    async def watch(self, bystander: Socket) -> None:
        """Listen to what the bystander gets."""
        while True:
            self.overheard.append(json.loads(await bystander.connection.get_message()))

    # -- playing ---------------------------------------------------------------------------------------

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[trio.SocketStream]:
        """Connect to the server; its side runs in a nursery here."""
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        async with trio.open_nursery() as connection:
            self.vitals.listener._admit(theirs, UNIX, connection)
            async with trio.SocketStream(trio.socket.from_stdlib_socket(ours)) as stream:
                yield stream

    async def call(self, method: str, path: str, body: object = None, *, token: str = "") -> tuple[int, dict]:
        """Call a route over a connection of its own; returns status and JSON."""
        data = b"" if body is None else json.dumps(body).encode()
        headers = [
            ("Host", "stage"),
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(data))),
        ]
        if token:
            headers.append(("Authorization", f"Bearer {token}"))
        client = h11.Connection(h11.CLIENT)
        request = h11.Request(method=method, target=path, headers=headers)
        parts = (client.send(request), client.send(h11.Data(data)), client.send(h11.EndOfMessage()))
        status, answer = 0, b""
        async with self.connected() as stream:
            await stream.send_all(b"".join(parts))
            while True:
                event = client.next_event()
                if event is h11.NEED_DATA:
                    client.receive_data(await stream.receive_some(65536))
                elif isinstance(event, h11.Response):
                    status = event.status_code
                elif isinstance(event, h11.Data):
                    answer += bytes(event.data)
                else:
                    return status, json.loads(answer or b"{}")

    @asynccontextmanager
    async def socket(self) -> AsyncIterator["Line"]:
        """Open a socket as the user, and read its first frame."""
        protocol = ClientProtocol(parse_uri("ws://stage/v1/ws"), subprotocols=[Subprotocol("nurseries.v1")])
        async with self.connected() as stream:
            line = Line(Connection(stream, protocol))
            await line.connection.shake_hands(self.user.access_token)
            assert (await line.frame())["type"] == "connection_established"
            yield line

    async def submit(self, take: Take, content: str, agent: str, owner: trio.Nursery) -> None:
        """Have a run accepted, as a frame of the user's would."""
        ask = Ask(thread_id=take.thread_id, content=f"{content}\n{take.canary}", agent=agent)
        async with open_call(self.vitals.kernel, self.user.user_id, thread_id=take.thread_id) as request:
            take.run = (await self.vitals.runs.submit(request, ask, owner)).run

    async def patient_run(self) -> Take:
        """Have a run under way that has said something, and would not end by itself."""
        take = await self.take()
        with self.vitals.streams.listen(self.user.user_id) as outbox:
            await self.submit(take, "wait", "patient", self.vitals.server.requests)
            while not any(event.type == "message_delta" for event in await outbox.take()):
                pass
        return take

    # -- looking ---------------------------------------------------------------------------------------

    async def nothing_left(self, take: Take) -> None:
        """Everything that the scenario had is given back, and what it wrote is whole and its user's alone."""
        with trio.move_on_after(PATIENCE_SECONDS):
            while self._still_at_work():
                await trio.testing.wait_all_tasks_blocked()
        assert self._still_at_work() == [], self._ledger
        assert self.vitals.kernel.pool.statistics().invalidated == 0, "a connection was thrown away"
        assert self.vitals.isolation.misdeliveries_prevented == 0
        assert self.served.owner.execute(STATES).fetchall() == [], "a connection is not idle"
        assert self._locks_now() == self._locks, "a lock is held"
        assert self._tasks_now() == self._tasks, "the task tree is not what it was"
        self.assert_log_is_whole(take)
        mine = {"canary": f"%{take.canary}%", "user": self.user.user_id}
        assert self.served.owner.execute(OF_OTHERS, mine).fetchall() == [], "somebody else has the canary"
        assert not any("canary" in json.dumps(frame) for frame in self.overheard), "the bystander heard it"

    async def nothing_left_of_patient_run(self, take: Take) -> None:
        """As `nothing_left`, after the run is cancelled if the scenario did not get so far."""
        while not take.run.done.is_set():
            if not take.run.scope.cancel_called:
                await self.vitals.runs.cancel(self.user.user_id, take.run.run_id)
            await trio.testing.wait_all_tasks_blocked()
        await self.nothing_left(take)

    def assert_log_is_whole(self, take: Take) -> None:
        """Every run of the thread has ended, with one last event and nothing behind it, and the numbers have no gap."""
        events = self.events(take)
        assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
        statuses = self.statuses(take)
        for run_id, status in statuses.items():
            story = [event["type"] for event in events if event["run_id"] == run_id]
            endings = [kind for kind in story if kind in ENDINGS]
            assert len(endings) == 1, f"run {run_id} ({status}): {story}"
            assert story[-1] == endings[0], f"run {run_id} goes on after its end: {story}"
            assert story[0] == "run_queued"
            assert status in {"completed", "failed", "cancelled", "interrupted"}
        assert {event["run_id"] for event in events} == set(statuses)

    def events(self, take: Take) -> list[dict]:
        """Return the thread's event log."""
        rows = self.served.owner.execute(
            "SELECT lines FROM events WHERE thread_id = %s ORDER BY first_seq", (take.thread_id,)
        ).fetchall()
        return [json.loads(line) for (lines,) in rows for line in lines.split("\n")]

    def statuses(self, take: Take) -> dict[str, str]:
        """Return the status of each run of the thread."""
        rows = self.served.owner.execute(
            "SELECT run_id::text, status FROM runs WHERE thread_id = %s", (take.thread_id,)
        )
        return dict(rows.fetchall())

    def count(self, sql: str, *params: object) -> int:
        """Return what one SELECT of one number gives."""
        return self.served.owner.execute(sql, params or None).fetchone()[0]

    def _still_at_work(self) -> list[str]:
        vitals = self.vitals
        pool, requests = vitals.kernel.pool.statistics(), vitals.kernel.budget.statistics()
        work = {
            "leases": len(self._ledger.leases),
            "connections lent": pool.checked_out,
            "waiting for one": pool.waiting,
            "requests": requests.in_use,
            "runs": len(vitals.runs),
            "events not committed": vitals.journal.statistics().waiting,
            "threads that are numbered": vitals.journal.statistics().threads,
            "other sockets": len(vitals.server.sessions) - 1,
            "their places": sum(vitals.server.sessions._places.values()) - 1,
            "tasks": (self._tasks_now() != self._tasks),
        }
        return [name for name, count in work.items() if count]

    def _tasks_now(self) -> Counter[str]:
        return Counter(name_of(task) for task in tasks_below(trio.lowlevel.current_root_task()))

    def _locks_now(self) -> Counter[tuple]:
        return Counter(self.served.owner.execute(LOCKS).fetchall())


class Line:
    """The client's end of a socket."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._frames: list[dict] = []

    async def send(self, **frame: object) -> None:
        """Send a frame with these fields."""
        await self.connection.send(json.dumps(frame).encode())

    async def frame(self) -> dict:
        """Return the next frame."""
        if not self._frames:
            self._frames = [json.loads(message) for message in await self.connection.receive()]
        return self._frames.pop(0)

    async def until(self, kind: str) -> None:
        """Read up to the first frame of this type."""
        while (await self.frame())["type"] != kind:
            pass
