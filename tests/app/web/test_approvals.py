"""A person's decisions over the protocol: by HTTP and by socket, from any device, and from nobody else."""

import json
from datetime import UTC, datetime

import psycopg
import pytest

from tests.fixtures.access import session_of
from tests.fixtures.house import running_server, signed_up
from tests.fixtures.trail import administrator, trail
from tests.fixtures.vitals import at_rest, samples

MISSING = "01900000-0000-7000-8000-000000000000"
SHOWN = {"run_id", "call_id", "tool", "arguments", "requested_at", "expires_at"}


@pytest.fixture
async def server(database):
    """The URL of a server with agents that pay for things."""
    async with running_server(database.owner, agents="tests.fixtures.working_agents") as url:
        yield url


@pytest.fixture
async def ann(server):
    async with signed_up(server) as user:
        yield user


async def ask(user, socket, things="tea"):
    """Have the shopper ask about things; returns the run's path and the questions by thing."""
    thread = await user.thread()
    await socket.send(type="user_message", thread_id=thread, content=things, agent="shopper")
    questions = {}
    while len(questions) < len(things.split()):
        (*_, asked) = await socket.until("approval_requested")
        questions[asked["payload"]["arguments"]["item"]] = asked
    return f"/v1/threads/{thread}/runs/{asked['run_id']}", questions


def answer_url(path, question):
    return f"{path}/approvals/{question['payload']['call_id']}"


async def test_a_decision_by_http(server, ann):
    """200 with the approval once it is in the log; the run goes on, and the same decision again is harmless."""
    async with ann.socket() as socket:
        path, questions = await ask(ann, socket)
        question = questions["tea"]
        run = (await ann.http.get(path)).json()
        assert run["status"] == "running"
        assert samples((await ann.http.get("/metrics")).text)["nurseries_runs_asking"] == 1
        (pending,) = run["approvals"]
        assert set(pending) == SHOWN
        assert pending["arguments"] == {"item": "tea"}
        assert pending["expires_at"] == question["payload"]["expires_at"]
        assert datetime.fromisoformat(pending["requested_at"]) < datetime.now(UTC)
        answers = [
            await ann.http.post(answer_url(path, question), json={"decision": "approve", "note": note})
            for note in ("a gift", "again")
        ]
        assert [answer.status_code for answer in answers] == [200, 200]
        assert answers[0].json() == answers[1].json() == {**pending, "decision": "approve", "note": "a gift"}
        frames = await socket.until("agent_completed")
        assert [frame["type"] for frame in frames] == [
            "approval_resolved",
            "tool_executing",
            "tool_completed",
            "message_delta",
            "agent_completed",
        ]
        assert frames[0]["payload"] == {
            "call_id": pending["call_id"],
            "decision": "approve",
            "note": "a gift",
        }
    assert "approvals" not in (await ann.http.get(path)).json()
    other = await ann.http.post(answer_url(path, question), json={"decision": "deny"})
    assert (other.status_code, other.json()["code"]) == (409, "already_decided")
    await at_rest(server)


async def test_a_decision_by_socket(server, ann):
    """From any of the user's devices; all of them hear of it. Another decision is a conflict that ends nothing."""
    async with ann.socket() as phone, ann.socket() as laptop:
        path, questions = await ask(ann, phone, "tea gold")
        await laptop.until("approval_requested")
        ids = {
            item: {"run_id": question["run_id"], "call_id": question["payload"]["call_id"]}
            for item, question in questions.items()
        }
        await laptop.send(type="deny", **ids["gold"], note="too dear")
        (*_, resolved) = await phone.until("approval_resolved")
        assert resolved["payload"] == {
            "call_id": ids["gold"]["call_id"],
            "decision": "deny",
            "note": "too dear",
        }
        await phone.send(type="deny", **ids["gold"])  # again: nothing happens
        await phone.send(type="approve", **ids["gold"])
        (*_, refused) = await phone.until("error")
        assert (refused["code"], refused["in_reply_to"]) == ("conflict", "approve")
        await phone.send(type="approve", **ids["tea"])
        frames = await phone.until("agent_completed")
        done = [frame["payload"] for frame in frames if frame["type"] == "tool_completed"]
        assert [(payload["call_id"], payload["ok"]) for payload in done][-1] == (ids["tea"]["call_id"], True)
    assert (await ann.http.get(path)).json()["status"] == "completed"
    await at_rest(server)


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ({"type": "approve", "run_id": MISSING, "call_id": MISSING}, "not_found"),
        ({"type": "deny", "run_id": "nonsense", "call_id": "x"}, "not_found"),
        ({"type": "approve", "run_id": MISSING}, "bad_frame"),
        ({"type": "approve", "call_id": MISSING}, "bad_frame"),
        ({"type": "approve", "run_id": MISSING, "call_id": MISSING, "user_id": MISSING}, "bad_frame"),
        ({"type": "deny", "run_id": MISSING, "call_id": MISSING, "note": "x" * 1001}, "bad_frame"),
    ],
)
async def test_a_frame_that_decides_nothing(ann, frame, code):
    """An error that ends nothing."""
    async with ann.socket() as socket:
        await socket.send(**frame)
        answer = await socket.receive()
        assert (answer["type"], answer["code"], answer["in_reply_to"]) == ("error", code, frame["type"])
        await socket.send(type="ping")
        assert (await socket.receive())["type"] == "pong"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "decision"),
        ({"decision": "maybe"}, "decision"),
        ({"decision": "expired"}, "decision"),
        ({"decision": "approve", "note": 1}, "note"),
        ({"decision": "approve", "note": "x" * 1001}, "note"),
        ({"decision": "approve", "user_id": MISSING}, "user_id"),
    ],
)
async def test_a_body_that_decides_nothing(ann, body, field):
    """422 that names the field, and the question stays open."""
    async with ann.socket() as socket:
        path, questions = await ask(ann, socket)
        answer = await ann.http.post(answer_url(path, questions["tea"]), json=body)
        assert (answer.status_code, answer.json()["field"]) == (422, field)
        assert len((await ann.http.get(path)).json()["approvals"]) == 1


async def test_somebody_elses_question_does_not_exist(server, ann):
    """Neither to be seen nor to be answered, by any way, with all its ids in hand."""
    async with signed_up(server) as eve, ann.socket() as socket, eve.socket() as other:
        path, questions = await ask(ann, socket)
        question = questions["tea"]
        thread = path.split("/")[3]
        for target in (
            answer_url(path, question),
            answer_url(path.replace(thread, await eve.thread()), question),
            f"{path}/approvals/{MISSING}",
            f"{path}/approvals/%00",
        ):
            answer = await eve.http.post(target, json={"decision": "approve"})
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), target
        await other.send(
            type="approve", run_id=question["run_id"], call_id=question["payload"]["call_id"], note="please"
        )
        assert (await other.receive())["code"] == "not_found"
        wrong = path.replace(thread, await ann.thread())
        answer = await ann.http.post(answer_url(wrong, question), json={"decision": "approve"})
        assert answer.status_code == 404
        (pending,) = (await ann.http.get(path)).json()["approvals"]
        assert "decision" not in pending
        assert (await ann.http.post(f"{path}/cancel")).json()["status"] == "cancelled"
        late = await ann.http.post(answer_url(path, question), json={"decision": "approve"})
        assert (late.status_code, late.json()["code"]) == (409, "already_decided")
    await at_rest(server)


async def test_who_decided_is_in_the_audit_trail(database, server, ann):
    """Once for each decision that counted: in which login and from where, for which call of which tool, and no word of it."""
    with psycopg.connect(database.owner, autocommit=True) as owner:
        async with administrator(server, owner) as admin, ann.socket() as socket:
            path, questions = await ask(ann, socket, "tea gold")
            tea, gold = (questions[item] for item in ("tea", "gold"))
            for decision, status in (("approve", 200), ("approve", 200), ("deny", 409)):
                body = {"decision": decision, "note": "a secret wish"}
                answer = await ann.http.post(answer_url(path, tea), json=body)
                assert answer.status_code == status
            ids = {"run_id": gold["run_id"], "call_id": gold["payload"]["call_id"]}
            await socket.send(type="deny", **ids, note="a secret wish")
            await socket.until("agent_completed")
            entries = await trail(admin, user_id=ann.user_id)
    told = {entry["kind"]: entry for entry in entries if entry["kind"].startswith("call_")}
    assert set(told) == {"call_approved", "call_denied"}
    for kind, question in (("call_approved", tea), ("call_denied", gold)):
        entry, call_id = told[kind], question["payload"]["call_id"]
        assert (entry["count"], entry["session_id"], entry["address"]) == (1, session_of(ann), "127.0.0.1")
        assert (entry["thread_id"], entry["run_id"]) == (question["thread_id"], question["run_id"])
        assert entry["details"] == {"tool": "pay", "id": f"{question['run_id']}:{call_id}"}
    assert told["call_approved"]["connection_id"] is None
    assert told["call_denied"]["connection_id"]
    assert "secret" not in json.dumps(entries)
