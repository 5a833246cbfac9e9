"""What is somebody else's does not exist: every route of the API, with ids of another user."""

import json
import re
from unittest.mock import MagicMock  # only to ask an application for its routes

from app.engine.engine import Catalog, built_in_tools
from app.engine.registry import AgentRegistry
from app.web.application import make_application
from tests.fixtures.sse import watched
from tests.fixtures.vitals import at_rest

MISSING = "01900000-0000-7000-8000-000000000000"
ORDER = {"content": json.dumps({"events": 1, "sleep_ms": 60_000}), "agent": "load"}

# Method, path and body of every route that takes an id of a user's own things.
ROUTES = [
    ("GET", "/v1/threads/{thread}", None),
    ("PATCH", "/v1/threads/{thread}", {"title": "mine now"}),
    ("DELETE", "/v1/threads/{thread}", None),
    ("GET", "/v1/threads/{thread}/messages", None),
    ("POST", "/v1/threads/{thread}/runs", {"content": "x"}),
    ("GET", "/v1/threads/{thread}/runs/{run}", None),
    ("POST", "/v1/threads/{thread}/runs/{run}/cancel", None),
    ("POST", "/v1/threads/{thread}/runs/{run}/approvals/{call}", {"decision": "approve"}),
    ("GET", "/v1/threads/{thread}/events", None),
    ("DELETE", "/v1/files/{file}", None),
]
# Ways to ask that come before, or beside, the look at the thread.
VARIANTS = [
    ("GET", "/v1/threads/{thread}/messages?before={message}", None),
    ("GET", "/v1/threads/{thread}/events?after=1", None),
    ("POST", "/v1/threads/{thread}/runs?wait=true", {"content": "x"}),
    *[
        ("POST", "/v1/threads/{thread}/runs", {"content": "x", "on_conflict": policy})
        for policy in ("reject", "enqueue", "interrupt", "rollback")
    ],
]
PUBLIC = {
    "/",
    "/v1/auth/register",
    "/v1/auth/login",
    "/v1/auth/refresh",
    "/v1/auth/signin",
    "/health/live",
    "/health/ready",
    "/metrics",
}


def rules():
    """Return method and path of every route that the server has."""
    app = make_application(
        *[MagicMock()] * 5,
        Catalog(agents=AgentRegistry([]), tools=built_in_tools()),
        *[MagicMock()] * 2,
    )
    return {
        (method, rule.rule)
        for rule in app.url_map.iter_rules()
        for method in rule.methods - {"HEAD", "OPTIONS"}
    }


def filled(rule):
    return re.sub("<[a-z_]+>", MISSING, rule)


async def seen(user, path):
    return (await user.http.get(path)).json()


def test_no_route_is_forgotten():
    """A new route that takes an id belongs into the list above."""
    listed = {(method, path.replace("{", "<").replace("}", "_id>")) for method, path, _ in ROUTES}
    assert listed == {(method, path) for method, path in rules() if "_id>" in path}


async def test_ids_of_somebody_else_are_ids_that_do_not_exist(server, alice, bob):
    """Foreign, absent and malformed are one answer on every route, and nothing happens to the owner's things."""
    thread = await alice.thread(title="private")
    own = await bob.thread()
    await alice.run(thread, "time")
    message = (await seen(alice, f"/v1/threads/{thread}/messages"))["messages"][0]["message_id"]
    run = (await alice.http.post(f"/v1/threads/{thread}/runs", json=ORDER)).json()["run_id"]
    async with watched(alice, f"/v1/threads/{thread}/events") as events:
        await events.until("agent_completed")
        await events.until("agent_started")
        paths = [
            f"/v1/threads/{thread}",
            f"/v1/threads/{thread}/messages",
            f"/v1/threads/{thread}/runs/{run}",
        ]
        before = [await seen(alice, path) for path in paths]
        uploaded = await alice.http.post("/v1/files", files={"file": ("a.csv", b"a\n1\n")})
        foreign = {
            "thread": thread,
            "run": run,
            "message": message,
            "call": MISSING,
            "file": uploaded.json()["file_id"],
        }
        for method, path, body in ROUTES + VARIANTS:
            answers = set()
            for accept in ("*/*", "text/event-stream"):
                for ids in (
                    foreign,
                    dict.fromkeys(foreign, MISSING),
                    dict.fromkeys(foreign, "not-an-id"),
                    dict.fromkeys(foreign, thread.upper()),
                ):
                    answer = await bob.http.request(
                        method, path.format(**ids), json=body, headers={"Accept": accept}
                    )
                    answers.add((answer.status_code, answer.headers["Content-Type"], answer.text))
            assert len(answers) == 1, (method, path, answers)
            ((status, content_type, text),) = answers
            assert (status, content_type) == (404, "application/problem+json"), (method, path)
            assert json.loads(text)["code"] == "not_found"
        # A run is found in its own thread only, and a message is a cursor in its own thread only.
        for method, path in (
            ("GET", "runs/{run}"),
            ("POST", "runs/{run}/cancel"),
            ("GET", "messages?before={message}"),
        ):
            for there in (own, thread):
                answer = await bob.http.request(method, f"/v1/threads/{there}/{path.format(**foreign)}")
                assert answer.status_code == 404, (method, path, there)
            elsewhere = await alice.thread()
            answer = await alice.http.request(method, f"/v1/threads/{elsewhere}/{path.format(**foreign)}")
            assert answer.status_code == 404, (method, path)
        assert [await seen(alice, path) for path in paths] == before
        assert (await alice.http.post(f"/v1/threads/{thread}/runs/{run}/cancel")).json()[
            "status"
        ] == "cancelled"
        (ending,) = await events.until("run_cancelled")
    assert ending.data["run_id"] == run
    assert (await seen(bob, "/v1/threads"))["threads"] == [await seen(bob, f"/v1/threads/{own}")]
    assert (await seen(bob, f"/v1/threads/{own}/messages"))["messages"] == []
    await at_rest(server)


async def test_nobody_says_who_they_are_in_a_body_or_a_query(server, alice, bob):
    """`user_id` is refused by its name wherever a body or a parameter may stand, and nothing is made for anyone."""
    thread = await bob.thread()
    for method, path, body in [("POST", "/v1/threads", {}), *ROUTES]:
        url = path.format(thread=thread, run=MISSING, call=MISSING, file=MISSING)
        smuggled = [{"params": {"user_id": alice.user_id}, "json": body}]
        if body is not None or url.endswith("/cancel"):
            smuggled.append({"json": {**(body or {}), "user_id": alice.user_id}})
        for request in smuggled:
            answer = await bob.http.request(method, url, **request)
            assert (answer.status_code, answer.json()["field"]) == (422, "user_id"), (method, path)
    assert (await seen(alice, "/v1/threads"))["threads"] == []
    assert (await seen(bob, f"/v1/threads/{thread}/messages"))["messages"] == []


async def test_every_route_asks_who_it_is(server, alice):
    """Without a token, with a wrong one, and with one in the query string: 401, before anything else is looked at."""
    token = alice.access_token
    anonymous = alice.http
    del anonymous.headers["Authorization"]
    for method, rule in sorted(rules()):
        path = filled(rule)
        for name in ("access_token", "token", "ticket"):
            answer = await anonymous.request(method, path, params={name: token})
            assert answer.status_code == 401, (method, rule, name)
            assert token not in answer.text
        if rule in PUBLIC:
            continue
        for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": f"Basic {token}"}):
            answer = await anonymous.request(method, path, headers=headers, content=b"{")
            assert answer.status_code == 401, (method, rule)
            assert answer.json()["code"] == "unauthenticated"
            assert answer.headers["WWW-Authenticate"] == "Bearer"


async def test_a_session_that_has_ended_opens_nothing(server, alice):
    """After logout the access token is refused on every route, long before it expires."""
    thread = await alice.thread()
    assert (await alice.http.post("/v1/auth/logout")).status_code == 204
    for method, path, body in ROUTES:
        answer = await alice.http.request(
            method, path.format(thread=thread, run=MISSING, call=MISSING, file=MISSING), json=body
        )
        assert answer.status_code == 401, (method, path)


async def test_an_unknown_path_is_a_problem(server, alice):
    """404 in the form of every other error."""
    for path in (
        "/v1/nothing",
        "/v1/threads/",
        "/v1/threads/%00",
        "/v1/threads/%ff%fe",
        "/v1/threads/..%2f..%2fetc",
    ):
        answer = await alice.http.get(path)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
        assert answer.headers["Content-Type"] == "application/problem+json"


async def test_a_wrong_method_is_told_the_right_ones(server, alice):
    """405 with Allow on every route."""
    allowed: dict[str, set[str]] = {}
    for method, rule in rules():
        allowed.setdefault(rule, set()).add(method)
    for rule, methods in allowed.items():
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE"} - methods:
            answer = await alice.http.request(method, filled(rule))
            assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed"), (method, rule)
            assert answer.headers["Content-Type"] == "application/problem+json"
            assert set(answer.headers["Allow"].split(", ")) - {"HEAD", "OPTIONS"} == methods
