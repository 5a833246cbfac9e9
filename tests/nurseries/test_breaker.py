"""The circuit breaker: closed, open, half-open with one probe."""

import pytest

from nurseries.breaker import Breaker, BreakerOpen


@pytest.fixture
def breaker():
    return Breaker(threshold=3, cooldown=10)


def fail(breaker, times):
    for _ in range(times):
        breaker.admit().failed()


async def test_it_opens_at_the_threshold_and_refuses_at_once(breaker, mock_clock):
    """Failures in a row open it, and who is refused hears when to come back."""
    fail(breaker, 2)
    assert breaker.state == "closed"
    fail(breaker, 1)
    assert breaker.state == "open"
    with pytest.raises(BreakerOpen) as refused:
        breaker.admit()
    assert refused.value.retry_after == 10
    assert breaker.statistics().refused == 1


async def test_a_success_in_between_starts_the_count_again(breaker, mock_clock):
    """Only failures in a row count."""
    fail(breaker, 2)
    breaker.admit().succeeded()
    fail(breaker, 2)
    assert breaker.state == "closed"


async def test_one_probe_passes_after_the_cooldown(breaker, mock_clock):
    """Half-open, it lets one through and refuses the others until that one has reported."""
    fail(breaker, 3)
    mock_clock.jump(10)
    assert breaker.state == "half-open"
    probe = breaker.admit()
    with pytest.raises(BreakerOpen) as refused:
        breaker.admit()
    assert refused.value.retry_after > 0
    probe.succeeded()
    assert breaker.state == "closed"
    breaker.admit().succeeded()


async def test_a_failed_probe_opens_it_again(breaker, mock_clock):
    """One failure of the probe is enough, and the cooldown starts anew."""
    fail(breaker, 3)
    mock_clock.jump(10)
    breaker.admit().failed()
    assert breaker.state == "open"
    mock_clock.jump(9)
    with pytest.raises(BreakerOpen):
        breaker.admit()
    mock_clock.jump(1)
    breaker.admit()
    assert breaker.statistics().opened == 2


async def test_an_abandoned_probe_gives_its_place_away(breaker, mock_clock):
    """A probe that was cancelled says nothing about the service; the next caller is the probe."""
    fail(breaker, 3)
    mock_clock.jump(10)
    breaker.admit().abandoned()
    assert breaker.state == "half-open"
    breaker.admit().succeeded()
    assert breaker.state == "closed"


async def test_late_reports_of_earlier_tries_are_ignored(breaker, mock_clock):
    """A try from before the opening can neither close the breaker nor take the probe's place."""
    early = [breaker.admit() for _ in range(3)]
    fail(breaker, 3)
    early[0].succeeded()
    assert breaker.state == "open"
    mock_clock.jump(10)
    probe = breaker.admit()
    early[1].failed()
    early[2].abandoned()
    with pytest.raises(BreakerOpen):
        breaker.admit()
    probe.succeeded()
    assert breaker.state == "closed"
    assert breaker.statistics().opened == 1
