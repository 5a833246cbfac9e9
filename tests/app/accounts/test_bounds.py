"""What the account service keeps is bounded: sessions of a user, used tokens of a session, and what has ended."""

import pytest
import trio

from app.accounts.login_guard import LoginGuard
from app.errors import InvalidGrant, LoginFailed, RateLimited, Unauthenticated
from app.store import sessions as store

ANN = "ann@example.org"
PASSWORD = "correct horse battery"


async def test_one_session_too_many_ends_the_oldest(accounts):
    """With its sockets; the user is not kept from logging in, and another user's sessions stay."""
    service = accounts.make(sessions_per_user=3)
    await service.register(ANN, PASSWORD)
    bob = await accounts.identity("bob@example.org")
    pairs, closed = [], []
    for _ in range(3):
        accounts.clock.advance(1)
        pairs.append(await service.login(ANN, PASSWORD, address="192.0.2.1"))
    first = await service.authenticate_bearer(pairs[0].access_token)
    with service.live.watch(first.session_id, closed.append):
        accounts.clock.advance(1)
        pairs.append(await service.login(ANN, PASSWORD, address="192.0.2.1"))
    assert closed == ["too many sessions"]
    with pytest.raises(Unauthenticated):
        await service.authenticate_bearer(pairs[0].access_token)
    for pair in pairs[1:]:
        await service.authenticate_bearer(pair.access_token)
    (event,) = [event for event in accounts.audited if event.kind == "sessions_limited"]
    assert (event.user_id, event.session_id) == (first.user_id, first.session_id)
    await service.ticket(bob)


async def test_logins_at_the_same_moment_keep_to_the_bound(accounts):
    """All of them open a session; the next login ends what was too much for a moment."""
    service = accounts.make(sessions_per_user=5)
    await service.register(ANN, PASSWORD)
    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(lambda n=number: service.login(ANN, PASSWORD, address=f"192.0.2.{n}"))
    pair = await service.login(ANN, PASSWORD, address="192.0.2.1")
    assert accounts.value("SELECT count(*) FROM sessions WHERE revoked_at IS NULL") == 5
    await service.authenticate_bearer(pair.access_token)


async def test_a_session_that_refreshes_without_end_keeps_its_last_tokens(accounts, monkeypatch):
    """The oldest used ones go; a reuse of one that is kept ends the session, one that is gone is only refused."""
    monkeypatch.setattr(store, "USED_TOKENS", 10)
    pair = await accounts.login()
    tokens = [pair.refresh_token]
    for _ in range(30):
        accounts.clock.advance(1)
        tokens.append((await accounts.service.refresh(tokens[-1])).refresh_token)
    assert accounts.value("SELECT count(*) FROM refresh_tokens") == 11
    with pytest.raises(InvalidGrant):
        await accounts.service.refresh(tokens[0])
    assert accounts.alarms == []
    await accounts.service.authenticate_bearer(pair.access_token)
    with pytest.raises(InvalidGrant):
        await accounts.service.refresh(tokens[-5])
    assert [event.kind for event in accounts.alarms] == ["refresh_token_reused"]
    with pytest.raises(Unauthenticated):
        await accounts.service.authenticate_bearer(pair.access_token)


async def test_a_client_of_thirty_days_loses_no_used_token(accounts):
    """A renewal every fifteen minutes for a session's whole life is less than what is kept."""
    settings = accounts.service.settings
    assert settings.session_seconds / settings.access_seconds < store.USED_TOKENS


async def test_a_session_that_was_ended_goes_after_an_hour(accounts):
    """And not after the month that it would have lived; what is live stays."""
    ended, live = await accounts.identity(), await accounts.identity(registered=True)
    await accounts.service.logout(ended)
    accounts.clock.advance(3599)
    await accounts.service.remove_expired()
    assert accounts.value("SELECT count(*) FROM sessions") == 2
    accounts.clock.advance(2)
    await accounts.service.remove_expired()
    assert str(accounts.value("SELECT session_id FROM sessions")) == live.session_id
    assert accounts.value("SELECT count(*) FROM refresh_tokens") == 1
    await accounts.service.ticket(live)


async def test_thousands_of_failed_logins_are_remembered_in_bounded_memory(mock_clock):
    """The least recent go first; those that do not count any more are forgotten, the others stay."""
    guard = LoginGuard(failures=2, window=300, keys=1000)

    def fail(account):
        with pytest.raises(LoginFailed), guard.attempt(account, "192.0.2.1"):
            raise LoginFailed("wrong")

    for number in range(20_000):
        fail(f"{number}@example.org")
    assert len(guard) == 1000
    mock_clock.jump(200)
    fail(ANN)
    fail(ANN)
    guard.forget_expired()
    assert len(guard) == 1000
    mock_clock.jump(100)
    guard.forget_expired()
    assert len(guard) == 1
    with pytest.raises(RateLimited), guard.attempt(ANN, "192.0.2.1"):
        pass
    mock_clock.jump(200)
    guard.forget_expired()
    assert len(guard) == 0


async def test_the_janitor_has_failed_logins_forgotten(accounts, mock_clock):
    """With the rows that expired."""
    for number in range(50):
        with pytest.raises(LoginFailed):
            await accounts.service.login(f"{number}@example.org", "wrong", address="192.0.2.1")
    assert len(accounts.service._guard) == 50
    mock_clock.jump(301)
    await accounts.service.remove_expired()
    assert len(accounts.service._guard) == 0
