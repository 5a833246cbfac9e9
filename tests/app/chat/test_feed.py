"""A reader that pulls: every number once, and an end that takes nothing away from it."""

from collections.abc import Callable, Sequence

import attrs
import pytest
import trio

from app.chat.endings import Endings
from app.chat.feed import follow
from nurseries.errors import DatabaseUnavailable
from nurseries.events import Event, Origin, Streams

ANN = Origin.of_ids("ann", "thread", "run")


@attrs.define
class Log:
    """A log in memory."""

    events: list[Event] = attrs.field(factory=list)
    meanwhile: Callable[[], None] | None = None
    away: int = 0  # so many times it cannot be read

    async def last_seq(self, thread_id: str) -> int:
        await trio.lowlevel.checkpoint()
        return len(self.events)

    async def read(self, thread_id: str, after: int) -> Sequence[Event]:
        await trio.lowlevel.checkpoint()
        if self.away:
            self.away -= 1
            raise DatabaseUnavailable("no connection")
        page = self.events[after : after + 2]
        if self.meanwhile is not None:
            self.meanwhile()
        return page

    def say(self, streams: Streams) -> None:
        event = ANN.event("message_delta", len(self.events) + 1, {"text": "x"})
        self.events.append(event)
        streams.publish(event)


@pytest.fixture
def log():
    return Log()


@pytest.fixture
def endings():
    return Endings()


async def numbers(pages) -> list[int]:
    """Read to the end."""
    with trio.fail_after(10):
        return [event.seq async for page in pages for event in page]


def reader(streams, log, endings, after=0):
    return follow(streams, log, "ann", "thread", after, endings.outlook("ann", "thread"))


@pytest.mark.parametrize("kept", [True, False])
async def test_what_was_said_before_the_end_is_read_after_it(log, endings, kept):
    """Whether the log outlives the thread or goes with it: what was published is not lost to who is slow."""
    streams = Streams()
    log.say(streams)
    pages = reader(streams, log, endings)
    assert [event.seq for event in await anext(pages)] == [1]
    log.say(streams)
    log.say(streams)
    endings.tell("ann", "thread")
    if not kept:
        log.events.clear()
    assert await numbers(pages) == [2, 3]


async def test_what_is_said_during_the_last_look_at_the_log_is_not_lost(log, endings):
    """The end may come between the question and its answer."""
    streams = Streams()
    log.say(streams)
    pages = reader(streams, log, endings)
    assert [event.seq for event in await anext(pages)] == [1]

    def meanwhile():
        log.meanwhile = None
        log.say(streams)
        endings.tell("ann", "thread")

    log.meanwhile = meanwhile
    assert await numbers(pages) == [2]


async def test_an_end_during_the_replay_cuts_nothing_off(log, endings):
    """The log is read to its end."""
    streams = Streams()
    for _ in range(7):
        log.say(streams)
    pages = reader(streams, log, endings)
    first = [event.seq for event in await anext(pages)]
    endings.tell("ann", "thread")
    log.say(streams)
    assert first + await numbers(pages) == list(range(1, 9))


async def test_a_log_that_is_away_is_waited_for(log, endings, autojump_clock):
    """In the middle of the replay, for as long as it takes: who reads is told that it is quiet, and misses nothing."""
    streams = Streams()
    for _ in range(5):
        log.say(streams)
    pages = reader(streams, log, endings)
    assert [event.seq for event in await anext(pages)] == [1, 2]
    log.away = 3
    assert [len(await anext(pages)) for _ in range(3)] == [0, 0, 0]
    log.say(streams)
    endings.tell("ann", "thread")
    assert await numbers(pages) == [3, 4, 5, 6]


async def test_an_end_after_an_overflow_cuts_nothing_off(log, endings, monkeypatch):
    """What the outbox lost is in the log."""
    monkeypatch.setattr("app.chat.feed.FEED_EVENTS", 2)
    streams = Streams()
    log.say(streams)
    pages = reader(streams, log, endings)
    assert len(await anext(pages)) == 1
    for _ in range(20):
        log.say(streams)
    endings.tell("ann", "thread")
    assert await numbers(pages) == list(range(2, 22))


async def test_an_end_that_was_told_before_is_one(log, endings):
    """Who took the outlook, and came to read after the end, finishes at once."""
    pages = reader(Streams(), log, endings)
    endings.tell("ann", "thread")
    assert await numbers(pages) == []


def test_outlooks_are_one_users_and_go_with_their_readers(endings):
    """Another user's words about the same id change nothing, and nothing is kept of what nobody reads."""
    outlook = endings.outlook("ann", "thread")
    assert endings.outlook("ann", "thread") is outlook
    endings.tell("bob", "thread")
    endings.tell("ann", "other")
    assert not outlook.over
    endings.tell("ann", "thread")
    assert outlook.over
    again = endings.outlook("ann", "thread")
    assert not again.over
    del again
    assert not endings._outlooks
