"""Many users at once: no state, event, row or engine of one of them is ever met by another."""

import hashlib
import json
import re
import threading
from contextlib import AsyncExitStack
from functools import partial

import pytest
import trio
import trio.testing

from app.tools.threads import ToolThreads
from nurseries.errors import RequestEnded
from nurseries.ids import new_id
from tests.fixtures.vitals import at_rest
from tests.scenarios.agents import Meeting

AGENTS = "tests.scenarios.agents"
THREADS, OPERATIONS = 8, 50
CANARY = re.compile(r"canary-\d+-[0-9a-f]{12}")


def canaries(count):
    """Return a word for each user that nothing of another user's may ever contain."""
    return [f"canary-{number}-{new_id()[-12:]}" for number in range(count)]


async def all_converse(stack, served, words, turns):
    """Have a user for each word, all of them online before the first one speaks; return whose word is whose."""
    users = [await stack.enter_async_context(served.user()) for _ in words]
    everybody = Meeting(len(users))
    heard = []
    with trio.fail_after(120):
        async with trio.open_nursery() as nursery:
            for user, word in zip(users, words, strict=True):
                nursery.start_soon(_converse, user, word, turns, everybody, heard)
    assert sorted(heard) == sorted(words)
    return {user.user_id: word for user, word in zip(users, words, strict=True)}


async def test_no_agent_state_bleeds_between_five_users(serving, meet):
    """Five runs of one agent class, all in the middle of their notes at the same moment: each answers with its own."""
    words = canaries(5)
    meeting, answers = meet(5), {}

    async def talk(user, word):
        answers[word] = await user.run(await user.thread(), f"I am {word}", agent="notebook")

    async with serving(agents=AGENTS) as served, AsyncExitStack() as stack:
        users = [await stack.enter_async_context(served.user()) for _ in words]
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for user, word in zip(users, words, strict=True):
                    nursery.start_soon(talk, user, word)
    assert {word: answer["output"] for word, answer in answers.items()} == {
        word: f"I am {word}" for word in words
    }
    assert len({id(agent) for agent in meeting.met}) == 5
    assert sorted(" ".join(agent.notes) for agent in meeting.met) == sorted(f"I am {word}" for word in words)


async def _converse(user, word, turns, everybody, heard):
    """Have a conversation whose every message carries the word; hear everything, and see that it is this user's."""
    thread = await user.thread(title=f"about {word}")
    frames, ended = [], 0
    async with user.socket() as socket:
        await everybody.join(user)
        for _ in range(turns):
            await socket.send(
                type="user_message", thread_id=thread, content=f"{word} {new_id()}", agent="gossip"
            )
        await socket.send(type="user_message", thread_id=thread, content=word, agent="blurting")
        while ended < turns + 1:
            frame = await socket.receive()
            assert frame["type"] != "error", frame
            if frame["type"] != "accepted":
                frames.append(frame)
                ended += frame["type"] in {"agent_completed", "run_failed"}
    for frame in frames:
        ids = f"{user.user_id}:{thread}:{frame['run_id']}"
        assert (frame["user_id"], frame["thread_id"]) == (user.user_id, thread)
        assert frame["delivery_checksum"] == hashlib.sha256(ids.encode()).hexdigest()[:16]
    assert [frame["seq"] for frame in frames] == list(range(1, len(frames) + 1))
    assert set(CANARY.findall(json.dumps(frames))) == {word}
    (failure,) = [frame for frame in frames if frame["type"] == "run_failed"]
    assert word not in json.dumps(failure)
    heard.append(word)


@pytest.mark.parametrize(("count", "turns"), [(8, 6), (100, 1)])
async def test_no_event_is_misdelivered(serving, caplog, count, turns):
    """Eight users under load, and a hundred: no foreign canary in any frame, row, log line or error."""
    async with serving(agents=AGENTS) as served, AsyncExitStack() as stack:
        word_of = await all_converse(stack, served, canaries(count), turns)
        status = served.vitals.status()
        assert (status["health"], status["isolation"]["misdeliveries_prevented"]) == ("healthy", 0)
        written = set()
        for table, column in (("events", "lines"), ("messages", "content"), ("threads", "title")):
            for user_id, text in served.owner.execute(f"SELECT user_id::text, {column} FROM {table}"):
                written |= {(table, user_id, word) for word in CANARY.findall(text)}
        assert written == {
            (table, user_id, word)
            for table in ("events", "messages", "threads")
            for user_id, word in word_of.items()
        }
        assert not served.owner.execute("SELECT FROM runs WHERE error_message ~ 'canary'").fetchall()
    # The one place for a user's words in a log is the traceback of the agent that raised them.
    assert not CANARY.findall(
        " ".join(record.getMessage() for record in caplog.records if not _exception(record))
    )


def _exception(record):
    return isinstance(record.msg, dict) and "exc_info" in record.msg


async def test_an_engine_is_never_shared_between_two_users(serving, meet):
    """Six users and three agent classes, all at once: every agent, model, dispatcher, emitter and nursery is one run's."""
    met = meet(6).met
    kinds = ("painter", "sailor", "tailor")
    async with serving(agents=AGENTS) as served, AsyncExitStack() as stack:
        users = [await stack.enter_async_context(served.user()) for _ in range(6)]
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for number, user in enumerate(users):
                    nursery.start_soon(
                        partial(user.run, await user.thread(), "hello", agent=kinds[number % 3])
                    )
    assert sorted(type(member["agent"]).name for member in met) == sorted(kinds * 2)
    assert {member["context"].user_id for member in met} == {user.user_id for user in users}
    for part in met[0]:
        assert len({id(member[part]) for member in met}) == 6, part


async def test_eight_threads_with_fifty_operations_each_do_not_mix_their_users(housing):
    """Four users have two blocking tools each, which come back to Trio for every query and event: all of it is their own."""
    async with housing(size=4, overflow=0) as house:
        threads = ToolThreads(total=THREADS, per_user=2)
        together = threading.Barrier(THREADS, timeout=60)
        users = [house.context() for _ in range(THREADS // 2)]
        read, said = [], []

        def work(request, number):
            together.wait()  # broken, and so the test, if they were not all at once
            for operation in range(OPERATIONS):
                trio.from_thread.run(request.database.execute, ADD, new_id(), f"{number}:{operation}")
                read.append((request.context.user_id, trio.from_thread.run(request.database.fetch, MINE)))
                event = trio.from_thread.run(request.events.emit, "step", {"number": number})
                said.append((event.user_id, event.seq))

        async def tool(context, number):
            async with house.request(house.context(context.user_id, context.thread_id)) as (request, _):
                await threads.run(context.user_id, work, request, number)

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for number in range(THREADS):
                    nursery.start_soon(tool, users[number // 2], number)
        assert (threads.in_use, len(read), len(said)) == (0, THREADS * OPERATIONS, THREADS * OPERATIONS)
        assert all(rows == [(user_id,)] for user_id, rows in read)
        for position, context in enumerate(users):
            titles = house.owner.execute(
                "SELECT title FROM threads WHERE user_id = %s AND title <> ''", (context.user_id,)
            ).fetchall()
            expected = [
                f"{number}:{n}" for number in (2 * position, 2 * position + 1) for n in range(OPERATIONS)
            ]
            assert sorted(title for (title,) in titles) == sorted(expected)
            numbers = [seq for user_id, seq in said if user_id == context.user_id]
            assert sorted(numbers) == list(range(1, 2 * OPERATIONS + 1))


ADD = "INSERT INTO threads (thread_id, user_id, title) VALUES ($1::uuid, app_user_id(), $2)"
MINE = "SELECT DISTINCT user_id::text FROM threads"


async def test_a_user_whose_tools_block_takes_no_thread_of_others():
    """Eight calls of one user hold two of eight threads, also once they are abandoned; another user's call is answered."""
    threads, release = ToolThreads(total=THREADS, per_user=2), threading.Event()
    try:
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                for _ in range(THREADS):
                    nursery.start_soon(threads.run, "greedy", release.wait)
                await trio.testing.wait_all_tasks_blocked()
                assert threads.in_use == 2
                nursery.cancel_scope.cancel()
            assert threads.in_use == 2  # a thread cannot be stopped: it keeps its token until it ends
            assert await threads.run("modest", lambda: "answered") == "answered"
    finally:
        release.set()


async def test_a_thread_that_outlives_its_request_reaches_nothing(housing):
    """A tool that ignores its cancellation finds the database and the events of its request closed."""
    async with housing(size=1, overflow=0) as house:
        threads, token = ToolThreads(), trio.lowlevel.current_trio_token()
        begun, request_over, outcomes = trio.Event(), threading.Event(), []

        def deaf(request):
            trio.from_thread.run_sync(begun.set)
            request_over.wait(20)
            for use in (
                partial(request.database.fetch, MINE),
                partial(request.events.emit, "step", {"from": "the grave"}),
            ):
                try:
                    outcomes.append(trio.from_thread.run(use, trio_token=token))
                except RequestEnded as error:
                    outcomes.append(type(error))

        with trio.fail_after(30):
            with trio.CancelScope() as scope:
                async with house.request() as (request, _):
                    request.nursery.start_soon(threads.run, request.context.user_id, deaf, request)
                    await begun.wait()
                    scope.cancel()
            request_over.set()
            while threads.in_use:
                await trio.lowlevel.checkpoint()
        assert outcomes == [RequestEnded, RequestEnded]


async def test_nothing_is_held_when_the_users_have_left(serving):
    """After eight users' runs, some of them failed, the server has no connection, request, run, socket or listener."""
    async with serving(agents=AGENTS) as served:
        async with AsyncExitStack() as stack:
            await all_converse(stack, served, canaries(8), 1)
        await at_rest(served.url)
