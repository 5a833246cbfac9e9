"""Other people's things, and guessing: hazards 12 to 14, beside an innocent bystander."""

import json

import psycopg
import pytest

from app.wire.messages import AnyClientFrame
from nurseries.ids import new_id
from tests.app.web.test_everybody_elses import ROUTES, VARIANTS
from tests.fixtures.access import housed
from tests.fixtures.house import PASSWORD, signed_up
from tests.fixtures.trail import trail

# -- 12 and 13: other people's things ----------------------------------------------------------------------


async def test_12_every_route_and_frame_with_ids_of_somebody_else(database):
    """404 and `not_found`, word for word as for ids that do not exist; no event; and each one is in the trail."""
    async with housed(database) as house, signed_up(house.url) as alice, signed_up(house.url) as bob:
        thread = await alice.thread()
        run = (await alice.run(thread, "time"))["run_id"]
        messages = (await alice.http.get(f"/v1/threads/{thread}/messages")).json()["messages"]
        foreign = {"thread": thread, "run": run, "message": messages[0]["message_id"], "file": new_id()}
        house.owner.execute(
            "INSERT INTO files (file_id, user_id, name, table_name, kind, bytes, row_count, columns)"
            " VALUES (%s, %s, 'a.csv', 'a', 'csv', 1, 1, '[]')",
            [foreign["file"], alice.user_id],
        )
        absent = {name: new_id() for name in foreign}
        asked = 0
        async with bob.socket() as socket:
            for method, path, body in [*ROUTES, *VARIANTS, ("GET", "/v1/threads?before={thread}", None)]:
                theirs, nobodys = [
                    await bob.http.request(method, path.format(**ids, call="1"), json=body)
                    for ids in (foreign, absent)
                ]
                assert (theirs.status_code, theirs.text) == (404, nobodys.text), (method, path)
                assert nobodys.status_code == 404, (method, path)
                asked += sum(f"{{{name}}}" in path for name in foreign)
            for frame in FRAMES:
                theirs, nobodys = [await answer_to(socket, frame, ids) for ids in (foreign, absent)]
                assert theirs == nobodys, frame
                assert (theirs["type"], theirs["code"]) == ("error", "not_found"), frame
                asked += sum(f"{{{name}}}" in json.dumps(frame) for name in foreign)
            await socket.send(type="ping")
            assert await socket.receive() == {"type": "pong"}
        assert (await alice.http.get(f"/v1/threads/{thread}/messages")).json()["messages"] == messages
        assert [each["file_id"] for each in (await alice.http.get("/v1/files")).json()["files"]] == [
            foreign["file"]
        ]
    counts = (
        "SELECT sum(count) FROM audit WHERE kind = 'foreign_id_asked' AND user_id = %s AND presented_by = %s"
    )
    with psycopg.connect(database.owner) as owner:
        assert owner.execute(counts, [alice.user_id, bob.user_id]).fetchone() == (asked,)
        told = "SELECT count(DISTINCT details ->> 'id') FROM audit WHERE kind = 'foreign_id_asked'"
        assert owner.execute(told).fetchone() == (len(foreign),)


FRAMES = [
    {"type": "user_message", "thread_id": "{thread}", "content": "x"},
    *[
        {
            "type": "user_message",
            "thread_id": "{thread}",
            "content": "x",
            "on_conflict": policy,
            "client_id": "c",
        }
        for policy in ("reject", "enqueue", "interrupt", "rollback")
    ],
    {"type": "subscribe", "thread_id": "{thread}", "after": 0},
    {"type": "subscribe", "thread_id": "{thread}", "after": 10**9},
    {"type": "cancel", "run_id": "{run}"},
    {"type": "approve", "run_id": "{run}", "call_id": "1"},
    {"type": "deny", "run_id": "{run}", "call_id": "1"},
]


async def answer_to(socket, frame, ids) -> dict:
    await socket.connection.send_message(
        json.dumps(frame).replace("{thread}", ids["thread"]).replace("{run}", ids["run"])
    )
    return await socket.receive()


def test_12_no_frame_is_forgotten():
    """A new frame with an id belongs into the list above."""
    with_ids = {
        frame.__struct_config__.tag
        for frame in AnyClientFrame.__args__
        if any(name.endswith("_id") and name != "client_id" for name in frame.__struct_fields__)
    }
    assert {frame["type"] for frame in FRAMES} == with_ids


@pytest.mark.parametrize("frame", [*FRAMES, {"type": "ping"}], ids=lambda frame: json.dumps(frame)[:60])
async def test_13_a_user_smuggled_into_a_frame(house, alice, bob, frame):
    """`bad_frame` that names the field, whatever else is in it."""
    thread = await bob.thread()
    async with bob.socket() as socket:
        for name in ("user_id", "as_user", "presented_by", "session_id"):
            answer = await answer_to(
                socket, {**frame, name: alice.user_id}, {"thread": thread, "run": new_id()}
            )
            assert (answer["type"], answer["code"]) == ("error", "bad_frame"), answer
            assert name in answer["message"]
    assert (await bob.http.get(f"/v1/threads/{thread}/messages")).json()["messages"] == []


# -- 14: guessing ------------------------------------------------------------------------------------------


async def test_14_guessing_a_password(database):
    """429 with Retry-After for that address, right password or not; the owner's sockets and sessions go on, from
    elsewhere they may log in, and the trail tells of it all."""
    async with housed(database, trusted_proxies=("127.0.0.1",)) as house, signed_up(house.url) as alice:
        guesser, home = {"X-Forwarded-For": "203.0.113.9"}, {"X-Forwarded-For": "198.51.100.1"}
        credentials = {"email": alice.email, "password": PASSWORD}
        async with alice.socket() as socket:
            for _ in range(10):
                wrong = await alice.http.post(
                    "/v1/auth/login", json={**credentials, "password": "wrong password"}, headers=guesser
                )
                assert (wrong.status_code, wrong.json()["code"]) == (401, "invalid_credentials")
            for email in (alice.email, alice.email.upper()):
                limited = await alice.http.post(
                    "/v1/auth/login", json={**credentials, "email": email}, headers=guesser
                )
                assert (limited.status_code, limited.json()["code"]) == (429, "rate_limited")
                assert 0 < int(limited.headers["Retry-After"]) <= 300
            assert (await alice.http.get("/v1/me")).status_code == 200
            renewed = await alice.http.post(
                "/v1/auth/refresh", json={"refresh_token": alice.refresh_token}, headers=guesser
            )
            assert renewed.status_code == 200
            assert (
                await alice.http.post("/v1/auth/login", json=credentials, headers=home)
            ).status_code == 200
            await socket.send(type="ping")
            assert await socket.receive() == {"type": "pong"}
        (failed,) = await trail(house.admin, kind="login_failed")
        assert (failed["user_id"], failed["address"]) == (alice.user_id, "203.0.113.9")
        (limited,) = await trail(house.admin, kind="login_limited")
        assert limited["address"] == "203.0.113.9"
        assert limited["details"] == failed["details"]
