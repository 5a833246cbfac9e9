"""A disk that is full: what is there is read, nothing is half stored, and with space again all goes on by itself."""

import os
import random
import string
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import attrs
import psycopg
import pytest
import trio
import trio.testing
from psycopg.conninfo import conninfo_to_dict

from app.chat.recovery import interrupt_orphans
from nurseries.testing.cluster import Cluster, roomy_directory
from tests.fixtures.house import User, running_server
from tests.fixtures.sse import watched
from tests.fixtures.vitals import at_rest, samples

DISK_BYTES = 64 << 20
BIG = "".join(random.Random(7).choices(string.ascii_letters + string.digits, k=30_000))
"""A message that no compression makes small enough for what is left of a page."""

TALK = {"content": '{"events":6000,"queries":0,"delta_bytes":170}', "agent": "load"}


@attrs.frozen
class Disk:
    """A small disk of its own, with everything of the database on it but its write-ahead log."""

    place: Path

    @property
    def _filler(self) -> Path:
        return self.place / "filler"

    def fill(self) -> None:
        """Leave no room for another page."""
        with self._filler.open("ab", buffering=0) as filler:
            with pytest.raises(OSError, match="No space left"):
                while True:
                    filler.write(bytes(4096))

    def free(self) -> None:
        """Give the room back."""
        self._filler.unlink(missing_ok=True)


def _mount(place: Path) -> None:
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=0711", "tmpfs", str(place)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode and os.environ.get("CI"):
        pytest.fail(f"no disk can be mounted: {mounted.stderr}")
    if mounted.returncode:
        pytest.skip(
            f"mounting a disk that is small takes rights that are not there: {mounted.stderr.strip()}"
        )


def _move(cluster: Cluster, name: str, tablespace: str) -> None:
    cluster.admin.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s", (name,)
    )
    cluster.admin.execute(f"ALTER DATABASE {name} SET TABLESPACE {tablespace}")


@pytest.fixture
def disk(cluster: Cluster, database) -> Iterator[Disk]:
    """The disk that this test's database lies on."""
    name = conninfo_to_dict(database.owner)["dbname"]
    with tempfile.TemporaryDirectory(prefix="nurseries-disk-", dir=roomy_directory()) as directory:
        place = Path(directory)
        place.chmod(0o711)
        _mount(place)
        try:
            owner = Path(cluster.admin.execute("SHOW data_directory").fetchone()[0]).stat()
            (place / "space").mkdir(mode=0o700)
            os.chown(place / "space", owner.st_uid, owner.st_gid)
            cluster.admin.execute(f"CREATE TABLESPACE small_{name} LOCATION '{place / 'space'}'")
            disk = Disk(place)
            try:
                _move(cluster, name, f"small_{name}")
                yield disk
                disk.free()
                _move(cluster, name, "pg_default")
            finally:
                disk.free()
                cluster.admin.execute(f"DROP TABLESPACE small_{name}")
        finally:
            subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def rounds(monkeypatch) -> list[int]:
    """How many lost runs the janitor found, round by round; it looks at once, and often."""
    found = []

    async def interrupt(*arguments, **_options):
        found.append(await interrupt_orphans(*arguments, min_age_seconds=0))
        return found[-1]

    monkeypatch.setattr("app.janitor.interrupt_orphans", interrupt)
    return found


@pytest.fixture
async def server(disk, database, rounds) -> AsyncIterator[str]:
    """A server whose disk it is."""
    async with running_server(database.owner, janitor_seconds=0.1) as url:
        yield url


async def waiting(user: User) -> None:
    """Return when the event log has tried to write and could not."""
    before = samples((await user.http.get("/metrics")).text)["nurseries_log_retries_total"]
    with trio.fail_after(60):
        while samples((await user.http.get("/metrics")).text)["nurseries_log_retries_total"] <= before:
            await trio.testing.wait_all_tasks_blocked(0.02)


async def write_until_full(user: User, thread: str) -> None:
    """Return when a write is answered as it should be; what is left of pages takes a few small rows before."""
    with trio.fail_after(60):
        while (answer := await user.http.post(f"{thread}/runs", json={"content": BIG})).status_code == 202:
            await trio.lowlevel.checkpoint()
    assert (answer.status_code, answer.json()["code"]) == (507, "storage_full")
    assert int(answer.headers["Retry-After"]) >= 1
    assert "extend" not in answer.text
    assert "/" not in answer.json()["detail"]


async def messages(user: User, thread: str) -> list[tuple[str, str]]:
    """Return what was said in a thread."""
    page = (await user.http.get(f"{thread}/messages")).json()
    return [(message["role"], message["content"]) for message in page["messages"]]


async def test_reading_goes_on_and_writing_comes_back(server, disk, alice, bob):
    """A write is answered 507 and leaves nothing behind; with the same key it is done once there is room."""
    thread, other = f"/v1/threads/{await alice.thread()}", f"/v1/threads/{await bob.thread()}"
    outcome = await alice.run(thread.rpartition("/")[2], "calculate 6*7")
    before = await messages(alice, thread)
    headers = {"Idempotency-Key": "k"}
    async with bob.socket() as socket:
        disk.fill()
        await write_until_full(bob, other)
        refused = await alice.http.post(f"{thread}/runs", json={"content": BIG}, headers=headers)
        assert refused.status_code == 507
        assert await messages(alice, thread) == before
        run = await alice.http.get(f"{thread}/runs/{outcome['run_id']}")
        assert (run.status_code, run.json()["status"]) == (200, "completed")
        assert (await alice.http.get("/v1/threads")).status_code == 200
        assert (await alice.http.get("/health/ready")).status_code == 200
        await socket.send(type="user_message", thread_id=other.rpartition("/")[2], content=BIG, client_id="c")
        error = (await socket.until("error"))[-1]
        assert (error["code"], error["in_reply_to"]) == ("database_unavailable", "c")
        await socket.send(type="ping")
        await socket.until("pong")
        disk.free()
        retried = await alice.http.post(f"{thread}/runs?wait=true", json={"content": BIG}, headers=headers)
        assert (retried.status_code, retried.json()["status"]) == (200, "completed")
        assert [said for said in await messages(alice, thread) if said[0] == "user"][1:] == [("user", BIG)]
    await at_rest(server)


async def test_a_run_waits_for_room_and_loses_nothing(server, disk, alice):
    """What it had to say waits in bounded memory; its reader gets every number once, in the end the log has them all."""
    thread = f"/v1/threads/{await alice.thread()}"
    async with watched(alice, f"{thread}/runs", TALK) as stream:
        first = await stream.until("message_delta")
        disk.fill()
        await waiting(alice)
        assert samples((await alice.http.get("/metrics")).text)["nurseries_runs"] == 1
        disk.free()
        records = first + await stream.rest()
    assert records[-1].type == "agent_completed"
    assert [record.id for record in records] == list(range(1, 6004))
    assert (await alice.http.get(thread)).json()["last_seq"] == 6003
    await at_rest(server)


async def test_a_run_that_is_cancelled_meanwhile_gives_everything_back_and_says_so_when_there_is_room(
    server, disk, alice, rounds
):
    """What it owned is released; whoever cancelled it is told when its end is in the log, and it is not forgotten."""
    thread = f"/v1/threads/{await alice.thread()}"
    answers = []

    async def cancel(run_id):
        answers.append(await alice.http.post(f"{thread}/runs/{run_id}/cancel", timeout=60))

    async with watched(alice, f"{thread}/runs", TALK) as stream, trio.open_nursery() as nursery:
        first = await stream.until("message_delta")
        disk.fill()
        await waiting(alice)
        nursery.start_soon(cancel, first[0].data["run_id"])
        with trio.fail_after(30):
            while samples((await alice.http.get("/metrics")).text)["nurseries_runs"]:
                await trio.testing.wait_all_tasks_blocked(0.02)
            looked = len(rounds)
            while len(rounds) < looked + 2:
                await trio.testing.wait_all_tasks_blocked(0.02)
        assert answers == []
        disk.free()
        records = first + await stream.rest()
    assert [record.id for record in records] == list(range(1, len(records) + 1))
    assert (records[-1].type, records[-1].data["payload"]) == ("run_cancelled", {"reason": "requested"})
    assert [(answer.status_code, answer.json()["status"]) for answer in answers] == [(200, "cancelled")]
    assert not any(rounds), "no janitor takes a run for lost whose end waits to be written"
    assert (await alice.http.get(thread)).json()["last_seq"] == records[-1].id
    await at_rest(server)


async def test_what_was_acknowledged_is_there_after_all(server, disk, database, alice):
    """Each message that was accepted while the disk filled up is in the database, and none that was refused."""
    thread = f"/v1/threads/{await alice.thread()}"
    accepted = []
    disk.fill()
    with trio.fail_after(60):
        while True:
            text = BIG[: 500 + len(accepted)]
            answer = await alice.http.post(
                f"{thread}/runs", json={"content": text, "on_conflict": "interrupt"}
            )
            if answer.status_code != 202:
                break
            accepted.append(text)
    assert answer.status_code == 507
    disk.free()
    with psycopg.connect(database.owner) as owner:
        rows = owner.execute("SELECT content FROM messages WHERE role = 'user' ORDER BY position").fetchall()
    assert [content for (content,) in rows] == accepted
    assert (await alice.run(thread.rpartition("/")[2], "calculate 6*7"))["status"] == "completed"
    await at_rest(server)
