"""Guessing is slow, and slows nobody else."""

import pytest

from app.accounts.login_guard import LoginGuard
from app.errors import Busy, LoginFailed, RateLimited

ANN = ("ann@example.org", "192.0.2.1")


@pytest.fixture
def guard():
    return LoginGuard(failures=10, window=300, keys=100)


def fail(guard, account=ANN[0], address=ANN[1], times=1):
    for _ in range(times):
        with pytest.raises(LoginFailed), guard.attempt(account, address):
            raise LoginFailed("wrong")


async def test_the_eleventh_guess_waits_until_the_first_is_forgotten(guard, mock_clock):
    """Ten failures in the window are all; Retry-After says when there is one more."""
    fail(guard)
    mock_clock.jump(100)
    fail(guard, times=9)
    with pytest.raises(RateLimited) as caught, guard.attempt(*ANN):
        pytest.fail("an eleventh guess was looked at")
    assert caught.value.retry_after == pytest.approx(200)
    mock_clock.jump(200)
    fail(guard)
    with pytest.raises(RateLimited), guard.attempt(*ANN):
        pytest.fail("a twelfth guess was looked at")


async def test_fifty_guesses_at_once_are_ten(guard):
    """A guess counts from its start, not from its answer."""
    admitted = []
    for _ in range(50):
        attempt = guard.attempt(*ANN)
        try:
            attempt.__enter__()
        except RateLimited:
            continue
        admitted.append(attempt)
    assert len(admitted) == 10


async def test_others_are_not_locked_out(guard):
    """The same account from another address, and another account from the same one, may try."""
    fail(guard, times=10)
    with guard.attempt("ann@example.org", "192.0.2.2"):
        pass
    with guard.attempt("bob@example.org", "192.0.2.1"):
        pass


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2001:db8::1", "2001:db8::ffff:1:2"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::2%eth1"),
    ],
)
async def test_one_client_has_one_address(guard, one, other):
    """What a subscriber can change at will, the lower half of an IPv6 address, makes no other client."""
    fail(guard, address=one, times=10)
    with pytest.raises(RateLimited), guard.attempt(ANN[0], other):
        pytest.fail("the same client was let in")


async def test_a_success_forgets_the_failures(guard):
    """Who mistyped nine times and then did not has ten tries again."""
    fail(guard, times=9)
    with guard.attempt(*ANN):
        pass
    assert len(guard) == 0
    fail(guard, times=10)


async def test_what_was_not_judged_is_not_counted(guard):
    """A login that ended because the server was busy was neither right nor wrong."""
    for _ in range(20):
        with pytest.raises(Busy), guard.attempt(*ANN):
            raise Busy("later")
    assert len(guard) == 0


async def test_memory_is_bounded(guard):
    """However many accounts and addresses are tried, only so many are remembered: those used last."""
    fail(guard, times=10)
    for number in range(1000):
        if number % 50 == 0:
            with pytest.raises(RateLimited), guard.attempt(*ANN):
                pytest.fail("forgotten although it was used")
        fail(guard, account="x" * 100_000 + str(number))
    assert len(guard) == 100
    assert all(len(key) == 32 for key in guard._tries)
