"""Which passwords are accepted, and how they are hashed."""

from types import SimpleNamespace

import pytest
import trio
from argon2 import Type, extract_parameters
from argon2.exceptions import VerifyMismatchError

from app.accounts.passwords import NO_PASSWORD, Passwords, check_strength
from app.accounts.settings import HashCost
from app.errors import Busy, WeakPassword

CHEAP = HashCost(memory_kib=8, passes=1, lanes=1)


@pytest.mark.parametrize(
    "password",
    [
        "",
        "seven77",
        "x" * 129,
        "password1",
        "PassWord1",
        "aaaaaaaaaa",
        "ann.smith@example.org",
        "Ann.Smith@Example.org",
        "ann.smith",
        "e\u0301" * 7,  # fourteen code points, seven characters
    ],
)
def test_a_weak_password_is_refused(password):
    """Too short, too long, too common, and the address itself are named as weak."""
    with pytest.raises(WeakPassword) as caught:
        check_strength(password, "ann.smith@example.org")
    assert caught.value.field == "password"


@pytest.mark.parametrize("password", ["eightchr", "abcd" * 32, "пароль-длинный", "correct horse battery"])
def test_any_other_password_is_accepted(password):
    """Eight to 128 characters of any script are a password."""
    check_strength(password, "ann.smith@example.org")


async def test_a_hash_is_argon2id_at_the_cost_of_the_settings():
    """What is stored says argon2id and the cost that was set, and verifies only its own password."""
    passwords = Passwords(HashCost(memory_kib=64, passes=2, lanes=1), waiters=10)
    stored = await passwords.hash("correct horse")
    parameters = extract_parameters(stored)
    assert (parameters.type, parameters.memory_cost, parameters.time_cost) == (Type.ID, 64, 2)
    assert await passwords.verify(stored, "correct horse")
    assert not await passwords.verify(stored, "correct horse ")
    assert stored != await passwords.hash("correct horse")


async def test_a_password_is_the_same_however_a_keyboard_composes_it():
    """An accent typed as one character or as two is the same password."""
    passwords = Passwords(CHEAP, waiters=10)
    assert await passwords.verify(await passwords.hash("caf\u00e9 noir"), "cafe\u0301 noir")


@pytest.mark.parametrize("stored", [None, NO_PASSWORD])
async def test_without_a_stored_hash_no_password_fits(stored):
    """An unknown user, and one without a password, cannot log in with any."""
    passwords = Passwords(CHEAP, waiters=10)
    assert not await passwords.verify(stored, "")
    assert not await passwords.verify(stored, "correct horse")


@pytest.mark.parametrize("stored", [None, NO_PASSWORD])
async def test_an_unknown_user_costs_what_a_wrong_password_costs(stored, monkeypatch):
    """In place of a missing hash one of the same parameters is verified, and to no avail only at the end."""
    passwords = Passwords(HashCost(memory_kib=64, passes=2, lanes=1), waiters=10)
    hasher, verified = passwords._hasher, []

    def verify(stand_in, password):
        verified.append(stand_in)
        with pytest.raises(VerifyMismatchError):  # and not InvalidHashError, which costs nothing
            hasher.verify(stand_in, password)
        return False

    monkeypatch.setattr(passwords, "_hasher", SimpleNamespace(verify=verify))
    await passwords.verify(stored, "anything")
    (stand_in,) = verified
    assert extract_parameters(stand_in) == extract_parameters(hasher.hash("anything"))


async def test_those_who_wait_for_a_hash_are_counted(nursery):
    """One more than may wait is told to come back, and those who wait are served."""
    passwords = Passwords(CHEAP, waiters=2)
    running = object()
    await passwords._limiter.acquire_on_behalf_of(running)
    hashes = []

    async def wait():
        hashes.append(await passwords.hash("correct horse"))

    nursery.start_soon(wait)
    nursery.start_soon(wait)
    await trio.testing.wait_all_tasks_blocked()
    with pytest.raises(Busy) as caught:
        await passwords.hash("correct horse")
    assert caught.value.retry_after > 0
    passwords._limiter.release_on_behalf_of(running)
    with trio.fail_after(10):
        while len(hashes) < 2:  # a thread's end, which no event of ours tells
            await trio.testing.wait_all_tasks_blocked()
