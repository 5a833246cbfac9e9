import pytest
import trio
import trio.testing

from app.cli.connection import open_connection
from app.cli.failures import Closed, Refused, Unreachable
from tests.app.cli.heard import Heard

WHOLE_RUN = 9  # events of a run of the scripted server that echoes "hi"


@pytest.fixture
def heard():
    return Heard()


@pytest.mark.parametrize("cut", range(WHOLE_RUN))
async def test_a_run_cut_at_any_event_arrives_once_and_whole(server, link, heard, nursery, cut):
    """Wherever the socket ends, the next one brings the rest of the run, in order, and nothing twice."""
    cuts = []

    async def drop_once(socket, envelope):
        if envelope["seq"] == cut + 1 and not cuts:
            cuts.append(envelope)
            await trio.aclose_forcefully(socket.stream)
        else:
            await socket.send(**envelope)

    server.on_event = drop_once
    nursery.start_soon(link.run, heard)
    link.ask("one", "hi", None)
    await heard.until_ended()
    assert cuts
    assert heard.seqs == list(range(1, WHOLE_RUN + 1))
    assert len(set(server.runs.values())) == 1


async def test_the_message_is_sent_again_until_it_is_accepted(server, link, heard, nursery):
    """A message whose acceptance was lost is repeated with its client id, and starts one run."""
    original, lost = server.on_message, []

    async def drop_first_message(socket, frame, nursery):
        if frame["type"] == "user_message" and not lost:
            lost.append(frame)
            await trio.aclose_forcefully(socket.stream)
        else:
            await original(socket, frame, nursery)

    server.on_message = drop_first_message
    nursery.start_soon(link.run, heard)
    link.ask("one", "hi", None)
    await heard.until_ended()
    assert lost == [frame for frame in server.received if frame["type"] == "user_message"]
    assert list(server.runs) == ["one"]


async def test_an_accepted_message_is_not_sent_again(server, link, heard, nursery):
    """Once forgotten, a message stays out of the next socket."""
    server.hold = True
    nursery.start_soon(link.run, heard)
    link.ask("one", "hi", None)
    await heard.until(lambda: heard.others)
    link.forget("one")
    await server.sockets[0].close(1012)
    await heard.until(lambda: "connected again" in heard.statuses)
    link.ask("two", "hi", None)
    await heard.until(lambda: any(frame.client_id == "two" for frame in heard.others))
    assert [f["client_id"] for f in server.received if f["type"] == "user_message"] == ["one", "two"]


async def test_an_event_that_is_repeated_is_shown_once(server, link, heard, nursery):
    """A server that sends an event twice does not make the client show it twice."""

    async def twice(socket, envelope):
        await socket.send(**envelope)
        await socket.send(**envelope)

    server.on_event = twice
    nursery.start_soon(link.run, heard)
    link.ask("one", "hi", None)
    await heard.until_ended()
    assert heard.seqs == list(range(1, WHOLE_RUN + 1))


async def test_an_event_that_is_missing_is_asked_for(server, link, heard, nursery):
    """A gap in the numbers is closed by subscribing again from before it."""
    dropped = []

    async def lose_fourth(socket, envelope):
        if envelope["seq"] == 4 and not dropped:
            dropped.append(envelope)
        else:
            await socket.send(**envelope)

    server.on_event = lose_fourth
    nursery.start_soon(link.run, heard)
    link.ask("one", "hi", None)
    await heard.until_ended()
    assert dropped
    assert heard.seqs == list(range(1, WHOLE_RUN + 1))
    assert {"type": "subscribe", "thread_id": link.thread_id, "after": 3} in server.received


async def test_live_events_before_the_replay_wait_for_it(server, link, heard, nursery):
    """What arrives between connecting and the answer to the subscription does not overtake the replay."""
    server.hold = True
    nursery.start_soon(link.run, heard)
    link.ask("one", "hi", None)
    await heard.until(lambda: len(heard.events) == WHOLE_RUN - 1)
    run_id = heard.events[0].run_id
    original = server.on_message

    async def early_event(socket, frame, nursery):
        if frame["type"] == "subscribe":
            await server.emit(socket.user_id, link.thread_id, run_id, "run_cancelled", reason="early")
        await original(socket, frame, nursery)

    server.on_message = early_event
    await server.sockets[0].close(1012)
    await heard.until_ended()
    assert heard.seqs == list(range(1, WHOLE_RUN + 1))


async def test_a_log_that_does_not_reach_back_is_gone_on_from_its_end(server, link, heard, nursery):
    """With `recovered: false` the client says so and follows what is new."""
    nursery.start_soon(link.run, heard)
    link.ask("one", "hi", None)
    await heard.until_ended()
    link.forget("one")
    server.pruned[link.thread_id] = WHOLE_RUN + 5
    await server.sockets[0].close(1012)
    await heard.until(lambda: heard.gaps)
    assert heard.gaps == [WHOLE_RUN]
    link.ask("two", "hi", None)
    await heard.until_ended(2)
    assert heard.seqs == list(range(1, 2 * WHOLE_RUN + 1))


async def test_a_cancel_is_repeated_on_the_next_socket(server, link, heard, nursery):
    """A run to be cancelled is cancelled though the socket ended before the server heard of it."""
    server.hold = True
    nursery.start_soon(link.run, heard)
    link.ask("one", "hi", None)
    await heard.until(lambda: len(heard.events) == WHOLE_RUN - 1)
    link.forget("one")
    await trio.aclose_forcefully(server.sockets[0].stream)
    link.cancel(heard.events[0].run_id)
    await heard.until_ended()
    assert heard.events[-1].type == "run_cancelled"


async def test_a_session_that_ended_is_renewed(server, link, heard, nursery):
    """A close with 4401 leads to a refresh and a new socket, not to the end."""
    nursery.start_soon(link.run, heard)
    link.ask("one", "hi", None)
    await heard.until_ended()
    link.forget("one")
    server.access.clear()
    await server.sockets[0].close(4401)
    await heard.until(lambda: "connected again" in heard.statuses)
    assert server.calls.count(("POST", "/v1/auth/refresh")) == 1


async def test_a_refused_handshake_is_tried_again_when_the_server_says(server, link, heard, nursery):
    """429 and 503 are not the end, and are not told again and again."""
    server.refusals = [(503, {"Retry-After": "0.001"}), (429, {})]
    nursery.start_soon(link.run, heard)
    link.ask("one", "hi", None)
    await heard.until_ended()
    assert server.refusals == []
    assert len([text for text in heard.statuses if "trying again" in text]) == 1


@pytest.mark.parametrize("code", [1008, 1009, 4403])
async def test_a_close_that_would_happen_again_is_final(server, link, heard, code):
    """Some close codes mean that another socket would end the same way."""

    async def close(socket, frame, nursery):
        await socket.close(code)

    server.on_message = close
    with trio.fail_after(10), pytest.raises(Closed) as caught:
        await link.run(heard)
    assert caught.value.code == code


async def test_patience_ends(server, link, heard, monkeypatch):
    """A server that stays away is given up after the time that was agreed."""
    monkeypatch.setattr(link, "_url", "http://127.0.0.1:1")
    monkeypatch.setattr(link, "_patience", 0.01)
    with trio.fail_after(10), pytest.raises(Unreachable):
        await link.run(heard)


async def test_a_silent_server_is_left(server, link, heard, nursery):
    """A server that answers no ping within two heartbeats is taken for gone."""
    server.heartbeat = 0.02

    async def silence(socket, frame, nursery):
        pass

    server.on_message = silence
    nursery.start_soon(link.run, heard)
    await heard.until(lambda: any("nothing was heard" in text for text in heard.statuses))


async def test_an_idle_server_is_asked_and_kept(server, link, heard, nursery, autojump_clock):
    """A connection on which nothing happens is not taken for a dead one."""
    nursery.start_soon(link.run, heard)
    link.ask("one", "hi", None)
    await heard.until_ended()
    asked = trio.Event()
    original = server.on_message

    async def count(socket, frame, nursery):
        await original(socket, frame, nursery)
        if [kept["type"] for kept in server.received].count("ping") >= 3:
            asked.set()

    server.on_message = count
    with trio.fail_after(600):
        await asked.wait()
    assert heard.statuses == []


async def test_a_cancelled_send_closes_the_socket(server, credentials):
    """After half a frame nothing else may be sent on that socket."""
    token = await credentials.token()

    async def never_read(*_):
        await trio.sleep_forever()

    server.on_message = never_read
    async with open_connection(server.url, token) as connection:

        async def send_for_ever():
            while True:
                await connection.send(b'"%s"' % (b"x" * 1_000_000))

        async with trio.open_nursery() as sending:
            sending.start_soon(send_for_ever)
            await trio.testing.wait_all_tasks_blocked(0.05)
            sending.cancel_scope.cancel()
        with pytest.raises(Closed):
            await connection.send(b"{}")


async def test_a_handshake_that_is_told_to_come_back_comes_back(server, credentials):
    """429 and 503 are tried again after their Retry-After, as far as patience goes."""
    token = await credentials.token()
    server.refusals = [(429, {"Retry-After": "0.001"}), (503, {"Retry-After": "0.001"})]
    async with open_connection(server.url, token, patience=10):
        assert server.refusals == []
    server.refusals = [(503, {"Retry-After": "3600"}), (503, {})]
    with pytest.raises(Refused) as caught:
        await open_connection(server.url, token, patience=10).__aenter__()
    assert (caught.value.status, caught.value.retry_after) == (503, 3600.0)
    assert len(server.refusals) == 1
