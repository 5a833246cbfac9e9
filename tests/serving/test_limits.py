"""Limits, rates, addresses: the parts that need no socket."""

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nurseries.serving import Headers, ServingLimits
from nurseries.serving.peers import TrustedProxies
from nurseries.serving.problem import Problem, http1_response
from nurseries.serving.rates import AddressRates, Rate, rate_key


@pytest.mark.parametrize(
    "name", [field.name for field in attrs.fields(ServingLimits) if field.name != "deflate"]
)
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_limits_are_positive(name, value):
    """A limit of nothing, or less, is refused by its name."""
    with pytest.raises(ValueError, match=name):
        ServingLimits(**{name: value})


@given(st.lists(st.floats(0, 3), max_size=200), st.integers(1, 20), st.floats(0.5, 50))
def test_rate_is_a_token_bucket(gaps, burst, rate):
    """What passes without waiting is what a bucket of `burst` tokens, filled at `rate`, would let pass."""
    limit, tokens, now, last = AddressRates(rate, burst, 10), float(burst), 100.0, 100.0
    for gap in gaps:
        now += gap
        tokens = min(burst, tokens + (now - last) * rate)
        last = now
        passed = limit.take("a", now) == 0.0
        if tokens >= 1 + 1e-6:
            assert passed
        elif tokens < 1 - 1e-6:
            assert not passed
        if passed:
            tokens = max(0.0, tokens - 1)


def test_rate_tells_how_long_to_hold_back():
    """Each event beyond the burst waits one interval longer."""
    rate = Rate(10, 2)
    assert [rate.take(5.0) for _ in range(4)] == [0, 0, pytest.approx(0.1), pytest.approx(0.2)]
    assert rate.take(5.5) == 0


def test_addresses_are_bounded():
    """However many addresses come, only so many are remembered, the last seen ones."""
    rates = AddressRates(1, 1, addresses=100)
    for index in range(10_000):
        assert rates.take(f"10.0.{index // 256}.{index % 256}", 0) == 0
    assert len(rates) == 100
    assert rates.take("10.0.39.15", 0) > 0


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("unix", "unix"),
        ("not:an:address", "not:an:address"),
    ],
)
def test_rate_key(address, key):
    """An IPv6 customer is one customer, however many addresses they use."""
    assert rate_key(address) == key


@pytest.mark.parametrize(
    ("address", "forwarded", "expected"),
    [
        ("10.0.0.1", "203.0.113.7", "203.0.113.7"),
        ("10.0.0.1", "1.1.1.1, 203.0.113.7", "203.0.113.7"),
        ("10.0.0.1", "1.1.1.1, 203.0.113.7, 10.9.9.9", "203.0.113.7"),
        ("10.0.0.1", "1.1.1.1, nonsense", "10.0.0.1"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "2001:db8::7", "2001:db8::7"),
        ("::ffff:10.0.0.1", "203.0.113.7", "203.0.113.7"),
        ("203.0.113.1", "1.1.1.1", "203.0.113.1"),
        ("unix", "203.0.113.7", "203.0.113.7"),
    ],
)
def test_client_behind_proxies(address, forwarded, expected):
    """The first address from the end that no trusted proxy has is the client's."""
    proxies = TrustedProxies(["10.0.0.0/8", "unix"])
    assert (
        proxies.client(address, Headers([(b"X-Forwarded-For", forwarded.encode())]), secure=False).address
        == expected
    )


def test_trusted_proxy_that_is_none():
    """A proxy that is no address is an error at the start."""
    with pytest.raises(ValueError, match="nonsense"):
        TrustedProxies(["nonsense"])


def test_headers():
    """Names have no case, repeated ones are joined, and bytes survive as ISO-8859-1."""
    headers = Headers([(b"A", b"1"), (b"b", b"\xff"), (b"a", b"2")])
    assert dict(headers) == {"a": "1, 2", "b": "ÿ"}
    assert "B" in headers
    assert headers.get("c") is None


def test_problem_stays_in_its_lines():
    """A header that would break out of its line is refused."""
    with pytest.raises(ValueError, match="line"):
        http1_response(401, b"", "text/plain", [(b"x", b"a\r\nSet-Cookie: b")])
    assert b"retry-after: 2\r\n" in Problem.of(429, retry_after=1.2).response()
