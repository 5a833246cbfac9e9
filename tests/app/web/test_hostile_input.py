"""What no client of good will sends, over HTTP, beside an innocent bystander: the status that it is answered with."""

import json

import pytest

MISSING = "01900000-0000-7000-8000-000000000000"

NO_JSON = {
    "duplicate keys": b'{"content": "a", "content": "b"}',
    "duplicate keys inside": b'{"content": {"a": 1, "a": 2}}',
    "deep lists": b'{"content": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep objects": b'{"a":' * 100_000,
    "a long integer": b'{"content": ' + b"9" * 5_000 + b"}",
    "NaN": b'{"content": NaN}',
    "infinity": b'{"content": -Infinity}',
    "not UTF-8": b'{"content": "\xff\xfe"}',
    "UTF-16": '{"content": "a"}'.encode("utf-16"),
    "two documents": b'{"content": "a"} {}',
    "a raw NUL": b'{"content": "\x00"}',
    "half a document": b'{"content": "a"',
}
WRONG = {
    "NUL": {"content": "a\0b"},
    "a lone surrogate": {"content": "\ud800"},
    "another type": {"content": ["a"]},
    "nothing": {"content": None},
    "too long": {"content": "x" * 32_001},
    "an unknown field": {"content": "a", "user_id": MISSING},
}
IDS = (
    "x",
    "0",
    "-1",
    "%00",
    "%F0%9F%92%A9",
    "..",
    "a" * 5_000,
    MISSING.replace("-", ""),
    f"{MISSING}%00",
    "'--",
)


@pytest.fixture
async def thread(alice):
    return f"/v1/threads/{await alice.thread()}"


@pytest.fixture
async def bystander(bob):
    """Somebody who has a socket open, and is answered before and after."""
    async with bob.socket() as socket:
        await socket.send(type="ping")
        assert await socket.receive() == {"type": "pong"}
        yield socket
        await socket.send(type="ping")
        assert await socket.receive() == {"type": "pong"}


async def test_what_is_not_strict_json(alice, thread, bystander):
    """400 `bad_json` on every route that takes a body; nothing is stored."""
    for what, body in NO_JSON.items():
        for method, path in (("POST", f"{thread}/runs"), ("POST", "/v1/threads"), ("PATCH", thread)):
            answer = await alice.http.request(
                method, path, content=body, headers={"Content-Type": "application/json"}
            )
            assert (answer.status_code, answer.json()["code"]) == (400, "bad_json"), (what, method, path)
    assert (await alice.http.get(f"{thread}/messages")).json()["messages"] == []
    assert len((await alice.http.get("/v1/threads")).json()["threads"]) == 1


async def test_what_is_json_and_cannot_be_meant(alice, thread, bystander):
    """422, with the field at fault by its name."""
    for what, body in WRONG.items():
        answer = await alice.http.post(
            f"{thread}/runs", content=json.dumps(body), headers={"Content-Type": "application/json"}
        )
        field = "user_id" if "user_id" in body else "content"
        assert (answer.status_code, answer.json()["field"]) == (422, field), what
    assert (await alice.http.get(f"{thread}/messages")).json()["messages"] == []


async def test_a_body_is_json_that_is_not_encoded(alice, bystander):
    """A compressed one is refused as such, before anything is unpacked; what Content-Type says does not matter."""
    body = json.dumps({"title": "x"}).encode()
    for encoding, status in [("gzip", 415), ("Deflate", 415), ("gzip, identity", 415), ("identity", 201)]:
        answer = await alice.http.post("/v1/threads", content=body, headers={"Content-Encoding": encoding})
        assert answer.status_code == status, encoding
        assert answer.json().get("code") == ("unsupported_media_type" if status == 415 else None)
    for kind in ({}, {"Content-Type": "text/plain"}, {"Content-Type": "application/json; charset=utf-8"}):
        assert (await alice.http.post("/v1/threads", content=body, headers=kind)).status_code == 201


async def test_ids_that_are_none(alice, thread, bystander):
    """404, as for an id that nobody has; never an error of the database."""
    for wrong in IDS:
        for method, path in (
            ("GET", f"/v1/threads/{wrong}"),
            ("DELETE", f"/v1/threads/{wrong}"),
            ("GET", f"/v1/threads/{wrong}/messages"),
            ("GET", f"/v1/threads/{wrong}/events"),
            ("GET", f"{thread}/runs/{wrong}"),
            ("POST", f"{thread}/runs/{wrong}/cancel"),
            ("GET", f"{thread}/messages?before={wrong}"),
        ):
            if wrong == ".." and "before=" not in path:
                continue  # a client resolves it before it is sent
            answer = await alice.http.request(method, path)
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), (method, path)
