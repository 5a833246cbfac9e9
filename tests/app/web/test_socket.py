"""The socket: who may open it, what its frames do, and whom events reach."""

import hashlib
import json

import pytest

from tests.fixtures.handshake import refused
from tests.fixtures.house import open_socket

MISSING = "01900000-0000-7000-8000-000000000000"


def bearer(user):
    return ("Authorization", f"Bearer {user.access_token}")


async def test_the_first_frame_says_who_and_what(server, alice):
    """The connection, the user, the time, the heartbeat and the limits."""
    async with open_socket(server, [bearer(alice)]) as socket:
        first = await socket.receive()
        assert socket.connection.subprotocol == "nurseries.v1"
    assert first["type"] == "connection_established"
    assert first["user_id"] == alice.user_id
    assert set(first) == {"type", "connection_id", "user_id", "server_time", "heartbeat_seconds", "limits"}
    assert first["limits"] == {"message_bytes": 128 * 1024, "messages_per_minute": 600}


async def test_a_turn_tells_its_story_to_the_user_and_to_nobody_else(server, alice, bob):
    """The five events in order, with envelopes that are right in every field; the other user hears nothing."""
    thread = await alice.thread()
    async with alice.socket() as socket, bob.socket() as stranger:
        await socket.send(type="user_message", thread_id=thread, content="calculate 6*7", client_id="c-1")
        frames = await socket.until("agent_completed")
        await stranger.send(type="ping")
        assert await stranger.receive() == {"type": "pong"}
    accepted, *events = frames
    run_id = accepted["run_id"]
    assert accepted == {"type": "accepted", "run_id": run_id, "client_id": "c-1", "duplicate": False}
    types = list(dict.fromkeys(event["type"] for event in events))
    assert types == [
        "run_queued", "agent_started", "agent_thinking", "tool_executing", "tool_completed", "message_delta", "agent_completed",
    ]  # fmt: skip
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    checksum = hashlib.sha256(f"{alice.user_id}:{thread}:{run_id}".encode()).hexdigest()[:16]
    for event in events:
        assert set(event) == {
            "type", "event_id", "seq", "user_id", "thread_id", "run_id", "timestamp", "payload", "delivery_checksum",
        }  # fmt: skip
        assert event["event_id"] == f"{thread}:{event['seq']}"
        assert (event["user_id"], event["thread_id"], event["run_id"]) == (alice.user_id, thread, run_id)
        assert event["delivery_checksum"] == checksum
    assert events[0]["payload"]["client_id"] == "c-1"
    assert "42" in events[-1]["payload"]["output"]
    said = "".join(event["payload"]["text"] for event in events if event["type"] == "message_delta")
    assert said == events[-1]["payload"]["output"]


async def test_all_sockets_of_a_user_hear_all_their_threads(server, alice):
    """Also a run that was started over HTTP."""
    thread = await alice.thread()
    async with alice.socket() as phone, alice.socket() as laptop:
        outcome = await alice.run(thread, "time")
        for socket in (phone, laptop):
            events = await socket.until("agent_completed")
            assert {event["run_id"] for event in events} == {outcome["run_id"]}
            assert [event["seq"] for event in events] == list(range(1, len(events) + 1))


async def test_a_repeated_client_id_starts_nothing(server, alice):
    """The repeat is answered with the first run, also on another socket."""
    thread = await alice.thread()
    message = {"type": "user_message", "thread_id": thread, "content": "time", "client_id": "same"}
    async with alice.socket() as socket:
        await socket.send(**message)
        first, *_ = await socket.until("agent_completed")
    async with alice.socket() as socket:
        await socket.send(**message)
        again = await socket.receive()
    assert again == {**first, "duplicate": True}
    messages = (await alice.http.get(f"/v1/threads/{thread}/messages")).json()["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant"]


async def test_subscribe_replays_the_suffix_and_goes_on_live(server, alice):
    """From any number: exactly what came after it, then what happens."""
    thread = await alice.thread()
    await alice.run(thread, "hello")
    async with alice.socket() as socket:
        await socket.send(type="subscribe", thread_id=thread, after=2)
        answer = await socket.receive()
        assert answer["recovered"] is True
        last = answer["last_seq"]
        assert answer == {
            "type": "subscribed",
            "thread_id": thread,
            "after": 2,
            "last_seq": last,
            "recovered": True,
        }
        assert [(await socket.receive())["seq"] for _ in range(last - 2)] == list(range(3, last + 1))
        await socket.send(type="user_message", thread_id=thread, content="time")
        live = [frame for frame in await socket.until("agent_completed") if frame["type"] != "accepted"]
        assert [event["seq"] for event in live] == list(range(last + 1, last + 1 + len(live)))


async def test_subscribing_again_replays_again(server, alice):
    """Whoever asks for a number gets what came after it, however often they ask."""
    thread = await alice.thread()
    await alice.run(thread, "hello")
    async with alice.socket() as socket:
        for _ in range(2):
            await socket.send(type="subscribe", thread_id=thread, after=0)
            last = (await socket.receive())["last_seq"]
            assert [(await socket.receive())["seq"] for _ in range(last)] == list(range(1, last + 1))


async def test_a_cursor_that_cannot_be_honoured_says_so(server, alice):
    """The client goes on from `last_seq`."""
    thread = await alice.thread()
    await alice.run(thread, "hello")
    async with alice.socket() as socket:
        await socket.send(type="subscribe", thread_id=thread, after=1000)
        answer = await socket.receive()
        assert answer["recovered"] is False
        await socket.send(type="user_message", thread_id=thread, content="time")
        live = [frame for frame in await socket.until("agent_completed") if frame["type"] != "accepted"]
        assert live[0]["seq"] == answer["last_seq"] + 1


async def test_cancel_over_the_socket_ends_the_run(server, alice):
    """`run_cancelled` follows, once; a second cancel is harmless."""
    thread = await alice.thread()
    order = json.dumps({"events": 1, "sleep_ms": 60_000})
    async with alice.socket() as socket:
        await socket.send(type="user_message", thread_id=thread, content=order, agent="load")
        frames = await socket.until("message_delta", "agent_started")
        run_id = frames[0]["run_id"]
        await socket.send(type="cancel", run_id=run_id)
        await socket.send(type="cancel", run_id=run_id)
        last = (await socket.until("run_cancelled"))[-1]
        assert (last["run_id"], last["payload"]) == (run_id, {"reason": "requested"})
        await socket.send(type="cancel", run_id=run_id)
        await socket.send(type="ping")
        assert (await socket.receive())["type"] == "pong"


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ("{", "bad_json"),
        ("[" * 100_000, "bad_json"),
        ('{"type":"ping","type":"ping"}', "bad_json"),
        ('{"type":"subscribe","thread_id":"x","after":' + "9" * 5000 + "}", "bad_json"),
        ('{"type":"ping","n":NaN}', "bad_json"),
        ('"ping"', "bad_frame"),
        ("{}", "bad_frame"),
        ('{"type":7}', "bad_frame"),
        ('{"type":"shout"}', "unknown_type"),
        ('{"type":"ping","extra":1}', "bad_frame"),
        ('{"type":"user_message","thread_id":"%(thread)s"}', "bad_frame"),
        ('{"type":"user_message","thread_id":"%(thread)s","content":5}', "bad_frame"),
        ('{"type":"user_message","thread_id":"%(thread)s","content":""}', "bad_frame"),
        ('{"type":"user_message","thread_id":"%(thread)s","content":"a\\u0000b"}', "bad_frame"),
        ('{"type":"user_message","thread_id":"%(thread)s","content":"\\ud800"}', "bad_frame"),
        ('{"type":"user_message","thread_id":"%(thread)s","content":"x","user_id":"%(other)s"}', "bad_frame"),
        ('{"type":"user_message","thread_id":"%(thread)s","content":"x","agent":"nobody"}', "bad_frame"),
        ('{"type":"user_message","thread_id":"%(thread)s","content":"x","on_conflict":"fight"}', "bad_frame"),
        ('{"type":"user_message","thread_id":"no-uuid","content":"x"}', "not_found"),
        ('{"type":"user_message","thread_id":"%(missing)s","content":"x"}', "not_found"),
        ('{"type":"subscribe","thread_id":"%(missing)s","after":0}', "not_found"),
        (f'{{"type":"user_message","thread_id":"%(thread)s","content":"{"x" * 32_001}"}}', "too_large"),
        ('{"type":"subscribe","thread_id":"%(thread)s","after":"0"}', "bad_frame"),
        ('{"type":"subscribe","thread_id":"%(thread)s","after":-1}', "bad_frame"),
        ('{"type":"cancel","run_id":"%(missing)s"}', "not_found"),
        ('{"type":"cancel"}', "bad_frame"),
    ],
)
async def test_a_bad_frame_is_answered_and_ends_nothing(server, alice, frame, code):
    """The error has the protocol's code, and the socket goes on."""
    thread = await alice.thread()
    text = (
        frame.replace("%(thread)s", thread)
        .replace("%(missing)s", MISSING)
        .replace("%(other)s", alice.user_id)
    )
    async with alice.socket() as socket:
        await socket.connection.send_message(text)
        error = await socket.receive()
        assert (error["type"], error["code"]) == ("error", code), error
        assert error["message"]
        await socket.send(type="ping")
        assert (await socket.receive())["type"] == "pong"


async def test_a_binary_frame_is_a_bad_frame(server, alice):
    """Frames are text."""
    async with alice.socket() as socket:
        await socket.connection.send_message(b'{"type":"ping"}')
        assert (await socket.receive())["code"] == "bad_frame"


async def test_reject_is_a_conflict(server, alice):
    """While a run is active, `reject` answers an error that names the message."""
    thread = await alice.thread()
    order = json.dumps({"sleep_ms": 60_000})
    async with alice.socket() as socket:
        await socket.send(type="user_message", thread_id=thread, content=order, agent="load")
        await socket.until("agent_started")
        await socket.send(
            type="user_message", thread_id=thread, content="x", on_conflict="reject", client_id="c-9"
        )
        error = (await socket.until("error"))[-1]
        assert (error["code"], error["in_reply_to"]) == ("conflict", "c-9")


async def test_another_users_ids_do_not_exist(server, alice, bob):
    """Thread, run and cursor of somebody else: not found, and nothing happens to them."""
    thread = await alice.thread()
    order = json.dumps({"sleep_ms": 60_000})
    async with alice.socket() as mine, bob.socket() as other:
        await mine.send(type="user_message", thread_id=thread, content=order, agent="load")
        run_id = (await mine.until("agent_started"))[0]["run_id"]
        for frame in (
            {"type": "user_message", "thread_id": thread, "content": "x"},
            {"type": "user_message", "thread_id": thread, "content": "x", "on_conflict": "reject"},
            {"type": "user_message", "thread_id": thread, "content": "x", "on_conflict": "rollback"},
            {"type": "subscribe", "thread_id": thread, "after": 0},
            {"type": "cancel", "run_id": run_id},
        ):
            await other.send(**frame)
            assert (await other.receive())["code"] == "not_found"
        status = (await alice.http.get(f"/v1/threads/{thread}/runs/{run_id}")).json()["status"]
        assert status == "running"


async def test_a_run_that_belongs_to_its_socket_ends_with_it(server, alice):
    """`on_disconnect: cancel`; and with `continue` it goes on."""
    order = json.dumps({"sleep_ms": 60_000})
    threads = [await alice.thread(), await alice.thread()]
    runs = []
    async with alice.socket() as witness:
        async with alice.socket() as socket:
            for thread, policy in zip(threads, ("cancel", "continue"), strict=True):
                await socket.send(
                    type="user_message", thread_id=thread, content=order, agent="load", on_disconnect=policy
                )
                runs.append((await socket.until("agent_started"))[0]["run_id"])
        last = (await witness.until("run_cancelled"))[-1]
        assert (last["run_id"], last["payload"]) == (runs[0], {"reason": "disconnected"})
    status = (await alice.http.get(f"/v1/threads/{threads[1]}/runs/{runs[1]}")).json()["status"]
    assert status == "running"


# -- who may open it ---------------------------------------------------------------------------------


async def test_nobody_opens_a_socket_without_a_proof(server, alice):
    """No token, a wrong one, a wrong scheme, a wrong ticket: 401 before the upgrade."""
    for headers in ([], [("Authorization", "Bearer x")], [("Authorization", f"Basic {alice.access_token}")]):
        assert (await refused(server, headers))[0] == 401
    assert (await refused(server, subprotocols=("nurseries.v1", "ticket.wrong")))[0] == 401


async def test_a_token_in_the_query_string_is_refused(server, alice):
    """Even beside a good header."""
    path = f"/v1/ws?access_token={alice.access_token}"
    assert (await refused(server, [bearer(alice)], path=path))[0] == 401


async def test_a_ticket_opens_one_socket(server, alice):
    """Only the protocol's own name is echoed, and the ticket is used up."""
    ticket = (await alice.http.post("/v1/auth/ticket")).json()
    assert ticket["expires_in"] == 30
    offered = ("nurseries.v1", f"ticket.{ticket['ticket']}")
    async with open_socket(server, [], subprotocols=offered) as socket:
        assert (await socket.receive())["user_id"] == alice.user_id
        assert socket.connection.subprotocol == "nurseries.v1"
    assert (await refused(server, subprotocols=offered))[0] == 401


@pytest.mark.parametrize("subprotocols", [(), ("nurseries.v2",), ("chat",)])
async def test_the_subprotocol_is_required(server, alice, subprotocols):
    """400, and nothing is echoed."""
    assert (await refused(server, [bearer(alice)], subprotocols=subprotocols))[0] == 400


async def test_only_pages_of_this_server_may_open_a_socket(server, alice):
    """Foreign, look-alike and null origins: 403. Its own: fine."""
    host = server.removeprefix("http://")
    for origin in (
        "https://evil.example",
        "null",
        f"http://{host}.evil.example",
        f"http://evil.example/{host}",
        "file://",
        host,
    ):
        assert (await refused(server, [bearer(alice), ("Origin", origin)]))[0] == 403, origin
    async with open_socket(server, [bearer(alice), ("Origin", server)]) as socket:
        assert (await socket.receive())["type"] == "connection_established"


async def test_a_user_has_a_bounded_number_of_sockets(server, alice, bob):
    """The eleventh is refused with 429 and Retry-After; another user's first is not."""
    from contextlib import AsyncExitStack

    async with AsyncExitStack() as stack:
        for _ in range(10):
            await stack.enter_async_context(alice.socket())
        status, problem = await refused(server, [bearer(alice)])
        assert (status, problem["code"]) == (429, "rate_limited")
        async with bob.socket():
            pass


async def test_logout_closes_the_sockets_of_that_session_only(server, alice, bob):
    """4401 at once; the same user's other login and other users stay."""
    from tests.fixtures.house import PASSWORD

    other = (await bob.http.post("/v1/auth/login", json={"email": alice.email, "password": PASSWORD})).json()
    async with alice.socket() as socket, bob.socket() as stranger:
        async with open_socket(server, [("Authorization", f"Bearer {other['access_token']}")]) as laptop:
            await laptop.receive()
            assert (await alice.http.post("/v1/auth/logout")).status_code == 204
            assert await socket.close_code() == 4401
            for alive in (laptop, stranger):
                await alive.send(type="ping")
                assert (await alive.receive())["type"] == "pong"
    assert (await refused(server, [bearer(alice)]))[0] == 401


async def test_refresh_reuse_closes_the_sockets_of_the_family(server, alice):
    """The second use of a refresh token revokes the session."""
    async with alice.socket() as socket:
        body = {"refresh_token": alice.refresh_token}
        assert (await alice.http.post("/v1/auth/refresh", json=body)).status_code == 200
        reused = await alice.http.post("/v1/auth/refresh", json=body)
        assert (reused.status_code, reused.json()["error"]) == (400, "invalid_grant")
        assert await socket.close_code() == 4401


async def test_an_unknown_path_has_no_socket(server, alice):
    """404 for a handshake elsewhere."""
    assert (await refused(server, [bearer(alice)], path="/v1/other"))[0] == 404
