import pytest

from app.cli.client import open_api
from app.cli.failures import Refused, Unreachable, refusal


async def test_a_call_that_is_told_to_come_back_comes_back(server, api):
    """429 and 503 are tried again after their Retry-After."""
    server.refusals = [(429, {"Retry-After": "0.001"}), (503, {"Retry-After": "0.001"})]
    assert await api.login("ada@example.com", "correct horse battery")
    assert len(server.calls) == 3


async def test_a_call_does_not_wait_beyond_its_patience(server, api):
    """A server that says `in an hour` gets no second call, and the caller gets its reason."""
    server.refusals = [(429, {"Retry-After": "3600"})]
    with pytest.raises(Refused) as caught:
        await api.login("ada@example.com", "correct horse battery")
    assert (caught.value.status, caught.value.code, caught.value.retry_after) == (429, "rate_limited", 3600.0)
    assert len(server.calls) == 1


async def test_a_refusal_is_not_repeated(server, api):
    """What is wrong stays wrong: 401 and 404 are final."""
    with pytest.raises(Refused):
        await api.login("ada@example.com", "wrong")
    assert len(server.calls) == 1


async def test_a_server_that_is_not_there_is_named():
    """The error tells the address."""
    async with open_api("http://127.0.0.1:1") as api:
        with pytest.raises(Unreachable, match=r"http://127\.0\.0\.1:1"):
            await api.threads("token")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"code":"conflict","detail":"x"}', "conflict"),
        (b'{"error":"invalid_grant"}', "invalid_grant"),
        (b"<", ""),
    ],
)
def test_a_refusal_has_the_code_of_its_document(body, code):
    """Problem documents, the token endpoint's errors, and things that are neither."""
    assert refusal(400, body, None).code == code


def test_a_retry_after_that_is_a_date_is_ignored():
    """The date form is legal, and of no use to us."""
    assert refusal(503, b"", "Wed, 21 Oct 2026 07:28:00 GMT").retry_after is None
