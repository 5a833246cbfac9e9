import pytest

from app.cli.credentials import Credentials, cache_path
from app.cli.failures import NotAuthenticated
from tests.app.cli.scripted_server import EMAIL, PASSWORD

REFRESH = ("POST", "/v1/auth/refresh")
LOGIN = ("POST", "/v1/auth/login")


async def test_tokens_are_kept_for_their_owner_alone(credentials, cache):
    """The cache file and its directory are closed to others."""
    await credentials.token()
    assert cache.path.stat().st_mode & 0o777 == 0o600
    assert cache.path.parent.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in sorted(cache.path.parent.iterdir())] == ["tokens.json", "tokens.lock"]


def test_the_cache_is_in_the_state_directory(monkeypatch, tmp_path):
    """XDG_STATE_HOME decides."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert cache_path() == tmp_path / "nurseries" / "tokens.json"


async def test_a_kept_login_needs_no_password(server, api, credentials, cache):
    """The second start uses the first one's token."""
    token = await credentials.token()
    later = Credentials(api, cache, server.url, EMAIL, None)
    assert await later.token() == token
    assert server.calls.count(LOGIN) == 1


async def test_a_login_belongs_to_one_server_and_one_account(api, credentials, cache, server):
    """Tokens are never offered to another server, nor for another account."""
    await credentials.token()
    for url, email in ((server.url, "eve@example.com"), ("http://localhost:1", EMAIL)):
        with pytest.raises(NotAuthenticated):
            await Credentials(api, cache, url, email, None).token()


async def test_a_token_near_its_end_is_refreshed(server, api, credentials, cache):
    """The refresh token is used, and its successor is kept."""
    server.expires_in = 1
    first = await credentials.token()
    server.expires_in = 900
    second = await credentials.token()
    assert second != first
    assert await Credentials(api, cache, server.url, EMAIL, None).token() == second
    assert server.calls.count(REFRESH) == 1


async def test_two_clients_do_not_use_one_refresh_token_twice(server, api, credentials, cache):
    """Whoever renews second takes what the first one got: a second use would end the session."""
    await credentials.token()
    other = Credentials(api, cache, server.url, EMAIL, None)
    await other.token()
    credentials.expire()
    other.expire()
    assert await credentials.token() == await other.token()
    assert server.calls.count(REFRESH) == 1


async def test_clients_wait_for_each_others_lock(cache, autojump_clock):
    """A lock that is never given back is an error that says so, not a wait for ever."""
    async with cache.locked():
        with pytest.raises(NotAuthenticated, match="too long"):
            async with cache.locked():
                pass
    async with cache.locked():
        pass


async def test_a_session_that_is_over_is_logged_in_again(server, credentials):
    """With the password at hand a refused refresh token is no obstacle."""
    await credentials.token()
    server.refresh.clear()
    credentials.expire()
    await credentials.token()
    assert server.calls.count(LOGIN) == 2


async def test_a_session_that_is_over_needs_the_password(server, api, credentials, cache):
    """Without one the client says who is not logged in, and forgets the dead tokens."""
    await credentials.token()
    server.refresh.clear()
    later = Credentials(api, cache, server.url, EMAIL, None)
    await later.token()
    later.expire()
    with pytest.raises(NotAuthenticated, match=EMAIL):
        await later.token()
    assert PASSWORD.encode() not in cache.path.read_bytes()
    assert b"access_token" not in cache.path.read_bytes()


async def test_a_revoked_token_is_noticed_at_the_start(server, credentials):
    """A token that looks good here, and is not any more there, is renewed."""
    await credentials.token()
    server.access.clear()
    await credentials.check()
    assert credentials.user_id == server.user_id


async def test_a_cache_that_was_damaged_is_an_empty_one(credentials, cache):
    """Half a file does not keep anybody out."""
    cache.path.parent.mkdir(parents=True)
    cache.path.write_bytes(b'{"half')
    assert await credentials.token()
