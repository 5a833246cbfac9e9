"""Logins, proofs of identity and what ends them, over a real database."""

import pytest
import trio

from app.accounts.tokens import AccessTokens
from app.errors import (
    EmailTaken,
    InvalidEmail,
    InvalidField,
    InvalidGrant,
    LoginFailed,
    NotFound,
    RateLimited,
    RegistrationClosed,
    Unauthenticated,
    WeakPassword,
)
from nurseries.ids import new_id

ANN = "ann@example.org"
PASSWORD = "correct horse battery"
ADDRESS = "192.0.2.1"


async def refused(call, *args, **kwargs):
    with pytest.raises(Unauthenticated):
        await call(*args, **kwargs)


# -- accounts ----------------------------------------------------------------------------------------


async def test_a_login_proves_who_one_is(accounts):
    """From registration to identity: the id is the one that registration gave."""
    user_id = await accounts.service.register("Ann@Example.org", PASSWORD)
    pair = await accounts.service.login(ANN, PASSWORD, address=ADDRESS)
    identity = await accounts.service.authenticate_bearer(pair.access_token)
    assert (identity.user_id, identity.email, identity.roles) == (user_id, "Ann@Example.org", ())
    assert pair.expires_in == identity.expires_in(accounts.clock()) == 900
    assert pair.token_type == "Bearer"


async def test_an_address_is_one_account_in_any_spelling(accounts):
    """Case and width of the letters make no second account."""
    await accounts.service.register("Ann@Example.org", PASSWORD)
    for spelling in (ANN, "ANN@EXAMPLE.ORG", "\uff21\uff2e\uff2e@example.org"):
        with pytest.raises(EmailTaken):
            await accounts.service.register(spelling, PASSWORD)


@pytest.mark.parametrize(
    "email",
    [
        "",
        "ann",
        "@example.org",
        "ann@",
        "ann@@example.org",
        "ann smith@example.org",
        " ann@example.org",
        "ann@example.org\n",
        "ann@-example.org",
        "ann@example..org",
        "a..n@example.org",
        "ann@exa_mple.org",
        "a" * 65 + "@example.org",
        "a@" + "b" * 60 + "." + "c" * 60 + "." + "d" * 60 + "." + "e" * 60 + "." + "f" * 20,
        "ann\u200b@example.org",
        "<ann@example.org>",
    ],
)
async def test_what_is_no_address_is_refused(accounts, email):
    """So that what is stored could be written to."""
    with pytest.raises(InvalidEmail):
        await accounts.service.register(email, PASSWORD)


@pytest.mark.parametrize(
    "email", ["a@b", "admin@localhost", "o'neil+tag@sub.example.co.uk", "анна@пример.рф"]
)
async def test_any_plausible_address_is_taken(accounts, email):
    """Only a message could prove more."""
    await accounts.service.register(email, PASSWORD)


async def test_a_weak_password_makes_no_account(accounts):
    """The rules of `check_strength` stand before the account, also for the administrator."""
    for add in (accounts.service.register, accounts.service.users.add):
        with pytest.raises(WeakPassword):
            await add(ANN, "short")
    assert accounts.value("SELECT count(*) FROM users") == 0


async def test_registration_can_be_switched_off(accounts):
    """Then only an administrator makes accounts, who can log in all the same."""
    service = accounts.make(registration=False)
    with pytest.raises(RegistrationClosed):
        await service.register(ANN, PASSWORD)
    await service.users.add(ANN, PASSWORD)
    await service.login(ANN, PASSWORD, address=ADDRESS)


async def test_roles_hold_from_the_next_request_on(accounts):
    """A token need not be renewed for it, and a role that is no name is refused."""
    pair = await accounts.login()
    await accounts.service.users.set_roles("ANN@example.org", ["admin", "admin", "support"])
    assert (await accounts.service.authenticate_bearer(pair.access_token)).roles == ("admin", "support")
    await accounts.service.users.set_roles(ANN, [])
    assert (await accounts.service.authenticate_bearer(pair.access_token)).roles == ()
    with pytest.raises(InvalidField):
        await accounts.service.users.set_roles(ANN, ["a role"])
    with pytest.raises(NotFound):
        await accounts.service.users.set_roles("nobody@example.org", ["admin"])


async def test_no_secret_is_in_the_database(accounts):
    """Whoever reads the tables can use nothing of it."""
    pair = await accounts.login()
    identity = await accounts.service.authenticate_bearer(pair.access_token)
    ticket = await accounts.service.ticket(identity)
    rows = "".join(
        str(accounts.owner.execute(f"SELECT t::text FROM {table} t").fetchall())
        for table in ("users", "sessions", "refresh_tokens", "tickets")
    )
    assert identity.session_id in rows
    for secret in (PASSWORD, pair.access_token, pair.refresh_token, ticket.ticket):
        assert secret not in rows


# -- guessing ----------------------------------------------------------------------------------------


async def test_unknown_user_wrong_password_and_disabled_user_are_answered_alike(accounts):
    """Nothing in the answer tells which it was."""
    await accounts.service.register(ANN, PASSWORD)
    await accounts.service.register("bob@example.org", PASSWORD)
    await accounts.service.users.disable("bob@example.org")
    answers = set()
    for email, password in ((ANN, "wrong"), ("nobody@example.org", PASSWORD), ("bob@example.org", PASSWORD)):
        with pytest.raises(LoginFailed) as caught:
            await accounts.service.login(email, password, address=ADDRESS)
        answers.add(str(caught.value))
    assert len(answers) == 1


async def test_guessing_is_slowed_and_the_owner_is_not_locked_out(accounts):
    """After ten failures even the right password waits, but not from elsewhere, and open sessions go on."""
    pair = await accounts.login()
    for _ in range(10):
        with pytest.raises(LoginFailed):
            await accounts.service.login(ANN, "wrong", address="198.51.100.7")
    with pytest.raises(RateLimited) as caught:
        await accounts.service.login("ANN@example.org", PASSWORD, address="198.51.100.7")
    assert 0 < caught.value.retry_after <= 300
    await accounts.service.authenticate_bearer(pair.access_token)
    await accounts.service.login(ANN, PASSWORD, address=ADDRESS)


# -- access tokens -----------------------------------------------------------------------------------


async def test_an_access_token_ends_by_the_clock(accounts):
    """Fifteen minutes and the leeway, then it is refused; the session itself goes on."""
    pair = await accounts.login()
    accounts.clock.advance(904)
    await accounts.service.authenticate_bearer(pair.access_token)
    accounts.clock.advance(1)
    await refused(accounts.service.authenticate_bearer, pair.access_token)
    await accounts.service.refresh(pair.refresh_token)


async def test_a_token_is_bound_to_its_user(accounts):
    """A's session under B's name is refused and audited, even if somebody could sign it."""
    ann = await accounts.identity()
    bob = await accounts.identity("bob@example.org")
    tokens = AccessTokens(bytes(range(32)), accounts.service.settings)
    for session_id in (ann.session_id, new_id()):
        token, _ = tokens.issue(bob.user_id, session_id, accounts.clock(), ann.expires_at)
        await refused(accounts.service.authenticate_bearer, token)
    (event,) = accounts.alarms
    assert (event.kind, event.user_id, event.presented_by) == (
        "credential_reused",
        ann.user_id,
        bob.user_id,
    )


async def test_every_login_is_a_new_session(accounts):
    """Nothing that was known before a login stands for what comes after it."""
    first = await accounts.identity()
    second = await accounts.identity(registered=True)
    assert first.session_id != second.session_id
    await accounts.service.logout(first)
    pair = await accounts.login(registered=True)
    third = await accounts.service.authenticate_bearer(pair.access_token)
    assert third.session_id not in {first.session_id, second.session_id}


async def test_a_session_ends_by_the_clock(accounts):
    """Thirty days after its login, refreshed or not."""
    pair = await accounts.login()
    for _ in range(29):
        accounts.clock.advance(24 * 3600)
        pair = await accounts.service.refresh(pair.refresh_token)
    accounts.clock.advance(24 * 3600 - 10)
    pair = await accounts.service.refresh(pair.refresh_token)
    assert pair.expires_in == 10
    accounts.clock.advance(10)
    await refused(accounts.service.authenticate_bearer, pair.access_token)
    with pytest.raises(InvalidGrant):
        await accounts.service.refresh(pair.refresh_token)


# -- refresh tokens ----------------------------------------------------------------------------------


async def test_a_refresh_token_works_once(accounts):
    """Its successor works, and the session stays the same."""
    pair = await accounts.login()
    before = await accounts.service.authenticate_bearer(pair.access_token)
    successor = await accounts.service.refresh(pair.refresh_token)
    after = await accounts.service.authenticate_bearer(successor.access_token)
    assert successor.refresh_token != pair.refresh_token
    assert (before.session_id, before.user_id) == (after.session_id, after.user_id)
    assert accounts.alarms == []


async def test_a_reused_refresh_token_ends_the_whole_family(accounts):
    """The thief's tokens and the owner's, the access tokens, the tickets and the sockets; no other session."""
    other = await accounts.identity()
    pair = await accounts.login(registered=True)
    identity = await accounts.service.authenticate_bearer(pair.access_token)
    ticket = await accounts.service.ticket(identity)
    successor = await accounts.service.refresh(pair.refresh_token)
    closed, others_closed = [], []
    with (
        accounts.service.live.watch(identity.session_id, closed.append),
        accounts.service.live.watch(other.session_id, others_closed.append),
    ):
        with pytest.raises(InvalidGrant):
            await accounts.service.refresh(pair.refresh_token)
        assert closed == ["refresh token used twice"]
        assert others_closed == []
    assert [event.kind for event in accounts.alarms] == ["refresh_token_reused"]
    for token in (pair.access_token, successor.access_token):
        await refused(accounts.service.authenticate_bearer, token)
    with pytest.raises(InvalidGrant):
        await accounts.service.refresh(successor.refresh_token)
    await refused(accounts.service.authenticate_ticket, ticket.ticket)
    await accounts.service.ticket(other)


async def test_an_unknown_refresh_token_ends_nothing(accounts):
    """Nor does an access token or a ticket in its place, or one that expired unused."""
    pair = await accounts.login()
    identity = await accounts.service.authenticate_bearer(pair.access_token)
    ticket = await accounts.service.ticket(identity)
    for token in ("", "x" * 43, pair.access_token, ticket.ticket, "\udcff"):
        with pytest.raises(InvalidGrant):
            await accounts.service.refresh(token)
    await accounts.service.authenticate_bearer(pair.access_token)
    assert accounts.alarms == []


async def test_refreshes_at_the_same_moment_have_one_successor(accounts):
    """One wins; the others are second uses, so the family ends."""
    pair = await accounts.login()
    won, lost = await race(20, accounts.service.refresh, pair.refresh_token)
    assert len(won) == 1
    assert len(lost) == 19
    assert all(isinstance(error, InvalidGrant) for error in lost)
    assert accounts.value("SELECT count(*) FROM refresh_tokens") == 2
    assert accounts.value("SELECT revoked_for FROM sessions") == "refresh token used twice"
    await refused(accounts.service.authenticate_bearer, won[0].access_token)
    assert [event.kind for event in accounts.alarms] == ["refresh_token_reused"]


async def race(times, call, *args):
    """Call it so many times at once; return the results and the errors."""
    won, lost = [], []

    async def one():
        try:
            won.append(await call(*args))
        except (InvalidGrant, Unauthenticated) as error:
            lost.append(error)

    async with trio.open_nursery() as nursery:
        for _ in range(times):
            nursery.start_soon(one)
    return won, lost


# -- tickets -----------------------------------------------------------------------------------------


async def test_a_ticket_stands_for_its_session_once(accounts):
    """Its identity is the session's, for as long as the session lasts; a second use is refused and audited."""
    identity = await accounts.identity()
    ticket = await accounts.service.ticket(identity)
    assert ticket.expires_in == 30
    opened = await accounts.service.authenticate_ticket(ticket.ticket)
    assert (opened.user_id, opened.session_id) == (identity.user_id, identity.session_id)
    assert opened.expires_in(accounts.clock()) == 30 * 24 * 3600
    await refused(accounts.service.authenticate_ticket, ticket.ticket)
    (event,) = accounts.alarms
    assert (event.kind, event.user_id) == ("ticket_reused", identity.user_id)


async def test_fifty_uses_of_a_ticket_at_once_have_one_winner(accounts):
    """The database decides, whatever the server's tasks do at the same time."""
    ticket = await accounts.service.ticket(await accounts.identity())
    won, lost = await race(50, accounts.service.authenticate_ticket, ticket.ticket)
    assert (len(won), len(lost)) == (1, 49)


async def test_a_ticket_ends_by_the_clock_and_with_its_session(accounts):
    """Thirty seconds, or a logout."""
    identity = await accounts.identity()
    first, second, third = [await accounts.service.ticket(identity) for _ in range(3)]
    accounts.clock.advance(29)
    await accounts.service.authenticate_ticket(first.ticket)
    accounts.clock.advance(1)
    await refused(accounts.service.authenticate_ticket, second.ticket)
    accounts.clock.advance(-30)
    await accounts.service.logout(identity)
    await refused(accounts.service.authenticate_ticket, third.ticket)


async def test_a_ticket_is_never_taken_for_somebody_else(accounts):
    """A's ticket beside B's token is refused, audited, and used up by it."""
    ann_pair, bob_pair = await accounts.login(), await accounts.login("bob@example.org")
    ann = await accounts.service.authenticate_bearer(ann_pair.access_token)
    bob = await accounts.service.authenticate_bearer(bob_pair.access_token)
    ticket = (await accounts.service.ticket(ann)).ticket
    await refused(accounts.service.authenticate_socket, bearer=bob_pair.access_token, ticket=ticket)
    (event,) = accounts.alarms
    assert (event.kind, event.user_id, event.presented_by) == (
        "credential_reused",
        ann.user_id,
        bob.user_id,
    )
    await refused(accounts.service.authenticate_ticket, ticket)


async def test_a_socket_is_opened_by_token_ticket_or_both(accounts):
    """But not by neither; with a token it lasts as long as the token."""
    pair = await accounts.login()
    identity = await accounts.service.authenticate_bearer(pair.access_token)
    opens = accounts.service.authenticate_socket
    assert await opens(bearer=pair.access_token, ticket=None) == identity
    ticket = await accounts.service.ticket(identity)
    assert (await opens(bearer=None, ticket=ticket.ticket)).expires_at > identity.expires_at
    ticket = await accounts.service.ticket(identity)
    assert await opens(bearer=pair.access_token, ticket=ticket.ticket) == identity
    await refused(opens, bearer=None, ticket=None)
    await refused(opens, bearer="", ticket=None)


# -- what ends a session -----------------------------------------------------------------------------


async def test_logout_stops_everything_of_the_session_at_once(accounts):
    """Its tokens, long before they expire, and its sockets; the user's other session goes on."""
    pair, other = await accounts.login(), await accounts.login(registered=True)
    identity = await accounts.service.authenticate_bearer(pair.access_token)
    closed = []
    with (
        accounts.service.live.watch(identity.session_id, closed.append),
        accounts.service.live.watch(identity.session_id, closed.append),
    ):
        await accounts.service.logout(identity)
        assert closed == ["logged out"] * 2
    await refused(accounts.service.authenticate_bearer, pair.access_token)
    with pytest.raises(InvalidGrant):
        await accounts.service.refresh(pair.refresh_token)
    await accounts.service.authenticate_bearer(other.access_token)
    await accounts.service.logout(identity)


async def test_a_disabled_user_is_out_at_once(accounts):
    """All sessions, tokens and sockets of the user, and no one else's."""
    pairs = [await accounts.login(), await accounts.login(registered=True)]
    bob = await accounts.login("bob@example.org")
    closed = []
    identities = [await accounts.service.authenticate_bearer(pair.access_token) for pair in pairs]
    with (
        accounts.service.live.watch(identities[0].session_id, closed.append),
        accounts.service.live.watch(identities[1].session_id, closed.append),
    ):
        await accounts.service.users.disable("ANN@example.org")
        assert closed == ["user disabled"] * 2
    for pair in pairs:
        await refused(accounts.service.authenticate_bearer, pair.access_token)
        with pytest.raises(InvalidGrant):
            await accounts.service.refresh(pair.refresh_token)
    with pytest.raises(LoginFailed):
        await accounts.service.login(ANN, PASSWORD, address=ADDRESS)
    await accounts.service.authenticate_bearer(bob.access_token)
    await accounts.service.users.disable(ANN)
    with pytest.raises(NotFound):
        await accounts.service.users.disable("nobody@example.org")


async def test_a_user_disabled_by_hand_is_out_too(accounts):
    """The user's own row counts, even where nobody ended the sessions."""
    pair = await accounts.login()
    ticket = await accounts.service.ticket(await accounts.service.authenticate_bearer(pair.access_token))
    accounts.owner.execute("UPDATE users SET disabled_at = now()")
    await refused(accounts.service.authenticate_bearer, pair.access_token)
    await refused(accounts.service.authenticate_ticket, ticket.ticket)
    with pytest.raises(InvalidGrant):
        await accounts.service.refresh(pair.refresh_token)


async def test_a_login_during_a_disabling_waits_and_fails(accounts):
    """The password was right when it was looked up; the session is opened only if the user still may."""
    await accounts.service.register(ANN, PASSWORD)
    failed = []

    async def login():
        with pytest.raises(LoginFailed) as caught:
            await accounts.service.login(ANN, PASSWORD, address=ADDRESS)
        failed.append(caught.value)

    async with trio.open_nursery() as nursery:
        with accounts.owner.transaction():
            accounts.owner.execute("UPDATE users SET disabled_at = now()")
            nursery.start_soon(login)
            await until_blocked(accounts)
    assert failed
    assert accounts.value("SELECT count(*) FROM sessions") == 0


async def test_a_disabling_during_a_login_ends_its_session(accounts):
    """A session that is committed while the disabling waits for it is ended too."""
    user_id = await accounts.service.register(ANN, PASSWORD)
    async with trio.open_nursery() as nursery:
        with accounts.owner.transaction():
            accounts.owner.execute("SELECT FROM users FOR SHARE")
            accounts.owner.execute(
                "INSERT INTO sessions (session_id, user_id, expires_at) VALUES (%s, %s, 'infinity')",
                (new_id(), user_id),
            )
            nursery.start_soon(accounts.service.users.disable, ANN)
            await until_blocked(accounts)
    assert accounts.value("SELECT revoked_for FROM sessions") == "user disabled"


async def until_blocked(accounts):
    """Return when a statement of the service waits for a lock that the owner holds."""
    with trio.fail_after(10):
        while not accounts.value(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            " AND datname = current_database()"
        ):
            await trio.lowlevel.checkpoint()


async def test_a_watch_misses_no_end(accounts):
    """A session that ended before it is watched is refused; one that ends after is told."""
    identity = await accounts.identity()
    told = []
    async with accounts.service.watching(identity, told.append):
        await accounts.service.logout(identity)
        assert told == ["logged out"]
    with pytest.raises(Unauthenticated):
        async with accounts.service.watching(identity, told.append):
            pytest.fail("an ended session was watched")
    assert accounts.service.live.watched() == frozenset()


# -- signing in without a password -------------------------------------------------------------------


async def test_the_first_user_signs_in_with_a_code(accounts):
    """An administrator without a password, made once; the code works once."""
    code = await accounts.service.codes.for_first_user()
    pair = await accounts.service.signin(code)
    identity = await accounts.service.authenticate_bearer(pair.access_token)
    assert (identity.email, identity.roles) == ("admin@localhost", ("admin",))
    assert pair.expires_in == 900
    assert await accounts.service.codes.for_first_user() is None
    with pytest.raises(InvalidGrant):
        await accounts.service.signin(code)
    assert [event.kind for event in accounts.alarms] == ["signin_code_reused"]
    await accounts.service.authenticate_bearer(pair.access_token)
    for password in ("", "admin", PASSWORD):
        with pytest.raises(LoginFailed):
            await accounts.service.login("admin@localhost", password, address=ADDRESS)


async def test_where_there_are_users_no_first_one_is_made(accounts):
    """A link that signs an administrator in is for a new database only."""
    await accounts.service.register(ANN, PASSWORD)
    assert await accounts.service.codes.for_first_user() is None


async def test_a_code_ends_by_the_clock(accounts):
    """A day, and then another one must be made."""
    code = await accounts.service.codes.for_first_user()
    accounts.clock.advance(24 * 3600)
    with pytest.raises(InvalidGrant):
        await accounts.service.signin(code)
    code = await accounts.service.codes.create("admin@localhost")
    await accounts.service.signin(code)
    with pytest.raises(NotFound):
        await accounts.service.codes.create("nobody@example.org")


async def test_a_secret_of_one_kind_is_none_of_another(accounts):
    """A ticket is not a sign-in code, a code is not a ticket, and neither is a refresh token."""
    code = await accounts.service.codes.for_first_user()
    pair = await accounts.login()
    ticket = (
        await accounts.service.ticket(await accounts.service.authenticate_bearer(pair.access_token))
    ).ticket
    for secret in (ticket, pair.refresh_token):
        with pytest.raises(InvalidGrant):
            await accounts.service.signin(secret)
    for secret in (code, pair.refresh_token):
        await refused(accounts.service.authenticate_ticket, secret)
    for secret in (code, ticket):
        with pytest.raises(InvalidGrant):
            await accounts.service.refresh(secret)
    await accounts.service.signin(code)
    await accounts.service.authenticate_ticket(ticket)
    await accounts.service.refresh(pair.refresh_token)


# -- upkeep ------------------------------------------------------------------------------------------


async def test_what_expired_is_removed_and_nothing_else(accounts):
    """Old tickets, then old sessions with their tokens; a used token of a live session stays, to know its reuse."""
    pair = await accounts.login()
    successor = await accounts.service.refresh(pair.refresh_token)
    identity = await accounts.service.authenticate_bearer(pair.access_token)
    await accounts.service.ticket(identity)
    counts = "SELECT ARRAY[(SELECT count(*) FROM {}), (SELECT count(*) FROM {}), (SELECT count(*) FROM {})]"
    counts = counts.format("tickets", "refresh_tokens", "sessions")
    await accounts.service.remove_expired()
    assert accounts.value(counts) == [1, 2, 1]
    accounts.clock.advance(60)
    await accounts.service.remove_expired()
    assert accounts.value(counts) == [0, 2, 1]
    with pytest.raises(InvalidGrant):
        await accounts.service.refresh(pair.refresh_token)
    await refused(accounts.service.authenticate_bearer, successor.access_token)
    accounts.clock.advance(30 * 24 * 3600)
    await accounts.service.remove_expired()
    assert accounts.value(counts) == [0, 0, 0]
    assert accounts.value("SELECT count(*) FROM users") == 1


async def test_a_sweep_is_bounded(accounts):
    """A thousand rows of a kind at a time, and it says when there may be more."""
    identity = await accounts.identity()
    accounts.owner.execute(
        "INSERT INTO tickets (ticket_hash, session_id, user_id, expires_at)"
        " SELECT sha256(n::text::bytea), %s, %s, '2020-01-01' FROM generate_series(1, 1500) n",
        (identity.session_id, identity.user_id),
    )
    assert await accounts.service.remove_expired()
    assert accounts.value("SELECT count(*) FROM tickets") == 500
    assert not await accounts.service.remove_expired()
    assert accounts.value("SELECT count(*) FROM tickets") == 0
