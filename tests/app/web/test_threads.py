"""`/v1/threads`: conversations and their messages, as the protocol describes them."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import psycopg
import trio

from tests.fixtures.vitals import at_rest

MISSING = "01900000-0000-7000-8000-000000000000"
THREAD = {"thread_id", "title", "created_at", "last_seq"}
MESSAGE = {"message_id", "role", "content", "run_id", "created_at"}


def problem(answer, status, code, field=None):
    """Check that an answer is this problem, in every part that the protocol promises."""
    body = answer.json()
    assert (answer.status_code, body["code"], body["status"]) == (status, code, status), answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert body.get("field") == field
    return body


async def pages(user, path, key, **params):
    """Return all pages of a list, from the newest on."""
    found, following = [], None
    while True:
        answer = await user.http.get(
            path, params=params if following is None else {**params, "before": following}
        )
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert set(body) == {key, "next"}
        found.append(body[key])
        following = body["next"]
        if following is None:
            return found


async def test_a_thread_from_its_creation_to_its_end(server, alice):
    """Created, read, renamed and deleted, with the status and exactly the fields of the protocol."""
    before = datetime.now(UTC)
    created = await alice.http.post("/v1/threads", json={"title": " Plans "})
    assert created.status_code == 201
    thread = created.json()
    assert set(thread) == THREAD
    assert (thread["title"], thread["last_seq"]) == ("Plans", 0)
    assert UUID(thread["thread_id"]).version == 7
    assert thread["created_at"].endswith("Z")
    assert before <= datetime.fromisoformat(thread["created_at"]) <= datetime.now(UTC) + timedelta(seconds=1)
    path = f"/v1/threads/{thread['thread_id']}"
    assert (await alice.http.get(path)).json() == thread
    renamed = await alice.http.patch(path, json={"title": "Plans for May"})
    assert (renamed.status_code, renamed.json()) == (200, {**thread, "title": "Plans for May"})
    outcome = await alice.run(thread["thread_id"], "time")
    assert outcome["status"] == "completed"
    read = (await alice.http.get(path)).json()
    assert read == {**renamed.json(), "last_seq": read["last_seq"]}
    assert read["last_seq"] >= 5
    deleted = await alice.http.delete(path)
    assert (deleted.status_code, deleted.content) == (204, b"")
    for again in (alice.http.get(path), alice.http.delete(path), alice.http.get(f"{path}/messages")):
        problem(await again, 404, "not_found")
    problem(await alice.http.get(f"{path}/runs/{outcome['run_id']}"), 404, "not_found")
    assert (await alice.http.get("/v1/threads")).json() == {"threads": [], "next": None}
    await at_rest(server)


async def test_a_thread_needs_no_title(server, alice):
    """An empty object and no body at all make a thread without one."""
    for body in ({"content": b"{}"}, {}):
        created = await alice.http.post("/v1/threads", **body)
        assert (created.status_code, created.json()["title"]) == (201, "")


async def test_titles_and_fields_are_checked(server, alice):
    """Where a title may stand it has its bounds, and what is not asked for is refused by its name."""
    thread = await alice.thread(title="x" * 200)
    url = f"/v1/threads/{thread}"
    for send, path in ((alice.http.post, "/v1/threads"), (alice.http.patch, url)):
        for title in ("x" * 201, 7, ["x"], "a\x00b"):
            problem(await send(path, json={"title": title}), 422, "invalid_field", "title")
        problem(await send(path, content=b'{"title":"\\ud800"}'), 422, "invalid_field", "title")
        for field in ("user_id", "thread_id", "owner"):
            body = problem(await send(path, json={"title": "x", field: MISSING}), 422, "invalid_field", field)
            assert MISSING not in body["detail"]
        for content in (
            b'{"title":"a","title":"b"}',
            b"[" * 100_000,
            b'{"title":' + b"9" * 5000 + b"}",
            b'{"title":NaN}',
            b"{",
            b"\xff",
        ):
            problem(await send(path, content=content), 400, "bad_json")
        problem(await send(path, content=b"[]"), 422, "invalid_field", "")
    problem(await alice.http.patch(url, json={}), 422, "invalid_field", "title")
    assert (await alice.http.get(url)).json()["title"] == "x" * 200
    assert len((await alice.http.get("/v1/threads")).json()["threads"]) == 1


async def test_threads_are_listed_newest_first(server, alice):
    """In pages that join without a gap or a repeat, while newer threads come in front."""
    made = [await alice.thread(title=str(number)) for number in range(6)]
    everything = await pages(alice, "/v1/threads", "threads")
    assert [[thread["thread_id"] for thread in page] for page in everything] == [made[::-1]]
    assert all(set(thread) == THREAD for thread in everything[0])
    for limit, sizes in ((1, [1] * 6), (4, [4, 2]), (3, [3, 3]), (6, [6]), (200, [6])):
        found = await pages(alice, "/v1/threads", "threads", limit=limit)
        assert [len(page) for page in found] == sizes
        assert [thread for page in found for thread in page] == everything[0]
    first = (await alice.http.get("/v1/threads?limit=2")).json()
    newer = await alice.thread()
    second = (await alice.http.get("/v1/threads", params={"limit": 2, "before": first["next"]})).json()
    assert [thread["thread_id"] for thread in second["threads"]] == made[3:1:-1]
    assert (await alice.http.get("/v1/threads?limit=1")).json()["threads"][0]["thread_id"] == newer


async def test_messages_are_paged_backwards_and_read_forwards(server, alice):
    """A page is in the order of the conversation; `before` gives the page before it."""
    thread = await alice.thread()
    path = f"/v1/threads/{thread}/messages"
    assert (await alice.http.get(path)).json() == {"messages": [], "next": None}
    runs = [(await alice.run(thread, f"calculate {number}+1"))["run_id"] for number in range(3)]
    ((*whole,),) = await pages(alice, path, "messages")
    assert all(set(message) == MESSAGE for message in whole)
    assert [message["role"] for message in whole] == ["user", "assistant"] * 3
    assert [message["run_id"] for message in whole] == [run for run in runs for _ in range(2)]
    assert [message["content"] for message in whole[::2]] == [f"calculate {number}+1" for number in range(3)]
    assert all(f"{number}+1 = {number + 1}" in whole[2 * number + 1]["content"] for number in range(3))
    times = [message["created_at"] for message in whole]
    assert times == sorted(times)
    for limit, sizes in ((1, [1] * 6), (2, [2, 2, 2]), (4, [4, 2]), (6, [6]), (7, [6])):
        found = await pages(alice, path, "messages", limit=limit)
        assert [len(page) for page in found] == sizes
        assert [message for page in reversed(found) for message in page] == whole
    other = await alice.thread()
    await alice.run(other, "time")
    foreign = (await alice.http.get(f"/v1/threads/{other}/messages")).json()["messages"][0]["message_id"]
    for cursor in (foreign, MISSING, "x"):
        problem(await alice.http.get(path, params={"before": cursor}), 404, "not_found")


async def test_page_parameters_are_checked(server, alice):
    """A limit from 1 to 200, a cursor, and nothing else."""
    thread = await alice.thread()
    for path in ("/v1/threads", f"/v1/threads/{thread}/messages"):
        for limit in (
            "0",
            "201",
            "-1",
            "1.5",
            "",
            "x",
            "٣",
            "9" * 5000,
            "0" * 8 + "1" + "9" * 10,
            "0" * 8 + "1" + "0" * 5000,
        ):
            problem(await alice.http.get(path, params={"limit": limit}), 422, "invalid_field", "limit")
        problem(await alice.http.get(path, params={"user_id": MISSING}), 422, "invalid_field", "user_id")
        for limit in ("1", "200"):
            assert (await alice.http.get(path, params={"limit": limit})).status_code == 200
        problem(await alice.http.get(f"{path}/x/y", params={"limit": "1"}), 404, "not_found")
        problem(await alice.http.put(path, params={"limit": "1"}), 405, "method_not_allowed")


async def test_an_idempotency_key_makes_one_thread(server, alice, bob):
    """The stored answer for the same body, 422 for another, and nothing to do with another user's keys."""
    key = {"Idempotency-Key": "k-1"}
    first = await alice.http.post("/v1/threads", json={"title": "once"}, headers=key)
    await alice.http.patch(f"/v1/threads/{first.json()['thread_id']}", json={"title": "renamed"})
    again = await alice.http.post("/v1/threads", json={"title": "once"}, headers=key)
    assert (again.status_code, again.json()) == (201, first.json())
    other = await alice.http.post("/v1/threads", json={"title": "twice"}, headers=key)
    problem(other, 422, "idempotency_key_reused", "Idempotency-Key")
    theirs = await bob.http.post("/v1/threads", json={"title": "twice"}, headers=key)
    assert theirs.status_code == 201
    assert theirs.json()["thread_id"] != first.json()["thread_id"]
    for wrong in ("", "k" * 256, "a\tb"):
        answer = await alice.http.post("/v1/threads", json={}, headers={"Idempotency-Key": wrong})
        problem(answer, 422, "invalid_field", "Idempotency-Key")
    assert len((await alice.http.get("/v1/threads")).json()["threads"]) == 1


async def test_twenty_at_once_with_one_key_make_one_thread(server, alice):
    """All get the same answer, and there is one row."""
    answers = []

    async def create():
        answer = await alice.http.post(
            "/v1/threads", json={"title": "once"}, headers={"Idempotency-Key": "same"}
        )
        answers.append((answer.status_code, answer.text))

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(create)
    assert len(set(answers)) == 1
    assert answers[0][0] == 201
    assert len((await alice.http.get("/v1/threads")).json()["threads"]) == 1
    await at_rest(server)


async def test_a_thread_goes_with_all_that_belongs_to_it(server, alice, database):
    """Its runs are ended first; then no row of it is left in any table, and no other thread is touched."""
    thread, other = await alice.thread(), await alice.thread()
    await alice.run(thread, "time")
    await alice.run(other, "time")
    order = {"content": '{"sleep_ms":60000}', "agent": "load"}
    for _ in range(3):
        assert (await alice.http.post(f"/v1/threads/{thread}/runs", json=order)).status_code == 202
    assert (await alice.http.delete(f"/v1/threads/{thread}")).status_code == 204
    await at_rest(server)
    with psycopg.connect(database.owner) as owner:
        for table in ("threads", "runs", "messages", "events"):
            left = owner.execute(f"SELECT DISTINCT thread_id::text FROM {table}").fetchall()
            assert left == [(other,)], table


async def test_pages_of_a_user_are_kept_by_nobody(server, alice):
    """An answer that is one user's is not for a cache that serves another."""
    for path in ("/v1/threads", f"/v1/threads/{await alice.thread()}", "/v1/me", "/v1/agents", "/v1/nothing"):
        assert (await alice.http.get(path)).headers["Cache-Control"] == "no-store", path
