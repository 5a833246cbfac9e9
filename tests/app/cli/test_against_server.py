"""The clients and the real server, which share no line of the protocol's code."""

import io
import random
import secrets
from contextlib import asynccontextmanager

import pytest
import trio
from rich.console import Console

from app.cli.bench import Plan, measure
from app.cli.chat import chat_command
from app.cli.client import open_api
from app.cli.credentials import Credentials, TokenCache
from app.cli.failures import NoSuchAgent
from app.cli.link import Link
from app.cli.load import Order
from tests.app.cli.heard import Heard
from tests.fixtures.house import PASSWORD, running_server


@pytest.fixture
async def url(database):
    async with running_server(database.owner) as url:
        yield url


@asynccontextmanager
async def breaking_proxy(url, chance):
    """A way to the server on which every connection breaks after some bytes of the server's."""
    host, _, port = url.removeprefix("http://").partition(":")
    breaks = []

    async def pump(source, target, limit):
        while limit > 0 and (data := await source.receive_some(min(4096, limit))):
            await target.send_all(data)
            limit -= len(data)

    async def serve(client):
        try:
            async with (
                client,
                await trio.open_tcp_stream(host, int(port)) as server,
                trio.open_nursery() as both,
            ):
                both.start_soon(pump, client, server, float("inf"))
                await pump(server, client, chance.randrange(400, 12_000))
                breaks.append(client)
                await trio.aclose_forcefully(client)
                both.cancel_scope.cancel()
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, serve, 0)
        yield f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}", breaks
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("seed", range(5))
async def test_a_run_over_a_line_that_keeps_breaking_arrives_once_and_whole(
    url, seed, tmp_path, monkeypatch, nursery
):
    """Whatever part of a frame was the last to get through."""
    monkeypatch.setattr("app.cli.link.FIRST_DELAY", 0.001)
    heard = Heard()
    async with open_api(url) as api, breaking_proxy(url, random.Random(seed)) as (broken_url, breaks):
        email = f"{secrets.token_hex(8)}@example.com"
        credentials = Credentials(api, TokenCache(tmp_path / "tokens.json"), url, email, PASSWORD)
        await credentials.register()
        thread = await api.create_thread(await credentials.token())
        link = Link(broken_url, credentials, patience=60.0)
        link.follow(thread.thread_id, thread.last_seq)
        nursery.start_soon(link.run, heard)
        link.ask("one", '{"events": 100, "queries": 1, "delta_bytes": 64, "sleep_ms": 0}', "load")
        await heard.until_ended()
        last_seq = (await api.thread(await credentials.token(), thread.thread_id)).last_seq
    assert len(breaks) > 1
    assert heard.seqs == list(range(1, last_seq + 1))
    assert [frame.type for frame in heard.events].count("run_queued") == 1
    texts = [frame.payload["text"] for frame in heard.events if frame.type == "message_delta"]
    assert "".join(texts) == heard.events[-1].payload["output"]


async def test_one_message_is_answered(url, capsys, tmp_path, monkeypatch):
    """From registration to the answer of a tool."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    account = {"email": f"{secrets.token_hex(8)}@example.com", "password": PASSWORD}
    assert await chat_command(url=url, **account, register=True, once="calculate 6*7") == 0
    out, err = capsys.readouterr()
    assert "6*7 = 42" in out
    assert "calculator → 42" in err


async def test_many_users_get_what_is_theirs(url):
    """A small load run is clean, and the server tells what it cost."""
    plan = Plan(url=url, users=5, turns=4, pause=0.0, greedy=3, order=Order(20, 2, 64, 0))
    report = await measure(plan, None, Console(file=io.StringIO()))
    assert report.clean, report
    assert (report.turns, report.events) == (20, 20 * 23)
    assert report.server.cpu_seconds is not None
    assert report.server.rss_bytes_after > 0
    assert report.server.pool_peak >= 1
    assert report.server.pool_timeouts == 0
    assert report.server.pool_waits is not None


async def test_a_server_that_cannot_be_measured_says_how_it_can(database):
    """Before anything is played."""
    async with running_server(database.owner, load_agent=False) as url:
        with pytest.raises(NoSuchAgent, match="--load-agent"):
            await measure(Plan(url, 1, 1, 0.0, 0, Order(1, 0, 1, 0)), None, Console(file=io.StringIO()))
