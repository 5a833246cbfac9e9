import pytest

from app.cli.client import open_api
from app.cli.credentials import Credentials, TokenCache
from app.cli.link import Link
from tests.app.cli.scripted_server import EMAIL, PASSWORD, scripted_server


@pytest.fixture
async def server(monkeypatch):
    """A scripted server with one user, and clients that come back to it at once."""
    monkeypatch.setattr("app.cli.link.FIRST_DELAY", 0.001)
    async with scripted_server() as server:
        server.user_id = server.new_user(EMAIL, PASSWORD)
        yield server


@pytest.fixture
async def api(server):
    async with open_api(server.url) as api:
        yield api


@pytest.fixture
def cache(tmp_path):
    return TokenCache(tmp_path / "nurseries" / "tokens.json")


@pytest.fixture
def credentials(server, api, cache):
    return Credentials(api, cache, server.url, EMAIL, PASSWORD)


@pytest.fixture
async def link(server, api, credentials):
    """A link that follows a new thread and is not running yet."""
    link = Link(server.url, credentials, patience=60.0)
    thread = await api.create_thread(await credentials.token())
    link.follow(thread.thread_id, thread.last_seq)
    return link
