"""`nurseries audit` against a real server."""

import json
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from app.cli.audit import audit_command
from app.settings import IsolationSettings
from tests.app.web.test_isolation import waiting_run
from tests.fixtures.house import PASSWORD, running_server, signed_up
from tests.fixtures.roles import promote


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    """A place for the tokens of this test's logins."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


@asynccontextmanager
async def two_users(database, agent, **settings):
    """A server with an administrator, and with two users who have a run of this agent each."""
    agents = "tests.app.web.leaking_agents"
    async with (
        running_server(database.owner, agents=agents, **settings) as url,
        signed_up(url) as admin,
        signed_up(url) as user,
        AsyncExitStack() as stack,
    ):
        promote(database, admin)
        for each in (admin, user):
            await waiting_run(each, agent, stack)
        yield url, admin, user


async def test_a_server_without_leaks_is_fine(database, capsys):
    """Status 0, and how much was looked at; logged in with email and password."""
    async with two_users(database, "keeper") as (url, admin, _user):
        assert await audit_command(url=url, email=admin.email, password=PASSWORD) == 0
    lines = dict(line.strip().split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert (lines["users"], lines["shared"], lines["health"]) == ("2", "0", "healthy")


async def test_a_leak_is_printed_with_its_way(database, capsys):
    """Status 1; the type, and how each of the two users reaches it."""
    async with two_users(database, "class-keeper") as (url, admin, user):
        assert await audit_command(url=url, admin_token=admin.access_token) == 1
    out = capsys.readouterr().out
    assert "dict, held as class attribute" in out
    for each in (admin, user):
        assert f"  {each.user_id}: " in out
    assert out.count("ClassKeeper > class attribute heard: dict") == 2


async def test_the_report_as_json_is_the_servers(database, capsys):
    """For programs."""
    async with two_users(database, "class-keeper") as (url, admin, _user):
        assert await audit_command(url=url, admin_token=admin.access_token, json=True) == 1
    report = json.loads(capsys.readouterr().out)
    assert [(each["kind"], each["type"]) for each in report["findings"]] == [("class attribute", "dict")]
    assert (report["health"], report["truncated"]) == ("critical", None)


async def test_an_audit_that_was_cut_short_is_no_clean_bill(database, capsys):
    """Status 2, and the bound that cut it short."""
    settings = IsolationSettings(objects=10)
    async with two_users(database, "class-keeper", isolation=settings) as (url, admin, _user):
        assert await audit_command(url=url, admin_token=admin.access_token) == 2
    assert "by the bound on objects" in " ".join(capsys.readouterr().out.split())


async def test_others_than_administrators_learn_nothing(database, capsys):
    """Status 1 and a refusal."""
    async with two_users(database, "class-keeper") as (url, _admin, user):
        assert await audit_command(url=url, admin_token=user.access_token) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "only for the role admin" in err
