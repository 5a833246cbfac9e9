"""What a provider says beside its answers: when to come back, and what was wrong."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx2
import pytest
import trio

from app.engine.models.errors import ModelFailure
from app.engine.models.http import MAX_RETRY_AFTER, failure_of, failures_told, make_http_client, retry_after


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "-3"}, 0),
        ({"retry-after": "86400"}, MAX_RETRY_AFTER),
        ({"retry-after": "1e999"}, MAX_RETRY_AFTER),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after-ms": "x", "retry-after": "9"}, 9),
        ({"retry-after": "Fri, 31 Dec 1999 23:59:59 GMT"}, 0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": ""}, None),
        ({}, None),
    ],
)
def test_retry_after(headers, seconds):
    """Seconds, milliseconds or a date; bounded; what is nothing of the kind says nothing."""
    assert retry_after(httpx2.Headers(headers)) == seconds


def test_retry_after_as_a_date():
    """A date is the time until then."""
    then = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    assert 55 < retry_after(httpx2.Headers({"retry-after": then})) <= 60


@pytest.mark.parametrize(
    ("body", "kind", "detail"),
    [
        (b'{"error": {"message": "m", "type": "t", "code": "c"}}', "c", "m"),
        (b'{"error": {"message": "m", "type": "t", "code": null}}', "t", "m"),
        (b'{"error": {"message": "m", "type": "t", "code": 5}}', "t", "m"),
        (b'{"type": "error", "error": {"type": "overloaded_error", "message": "m"}}', "overloaded_error", "m"),
        (b'{"error": "plain"}', "", "plain"),
        (b'{"error": {"type": "not a word", "message": {"deep": 1}}}', "", "{'deep': 1}"),
        (b'{"error": {"message": "' + b"x" * 5000 + b'"}}', "", "x" * 500),
        (b"<html>", "", ""),
        (b"\xff", "", ""),
        (b"[" * 10_000, "", ""),
        (b"", "", ""),
    ],
)  # fmt: skip
def test_errors_are_understood(body, kind, detail):
    """The identifier is one word; the provider's own words are kept apart, and short."""
    failure = failure_of(503, httpx2.Headers(), body)
    assert (failure.status, failure.kind, failure.detail) == (503, kind, detail)
    assert str(failure) == "is failing"


async def test_an_error_without_end_is_not_read_to_its_end():
    """A bounded part of its body is enough; the status says the rest."""
    sent = 0

    class Endless(httpx2.AsyncByteStream):
        async def __aiter__(self):
            nonlocal sent
            while True:
                sent += 1024
                assert sent < 10**6
                await trio.lowlevel.checkpoint()
                yield b"x" * 1024

    async with make_http_client() as client:
        client._transport = httpx2.MockTransport(lambda _: httpx2.Response(500, stream=Endless()))
        with pytest.raises(ModelFailure) as failed:
            await client.get("http://example.org/")
    assert failed.value.status == 500


@pytest.mark.parametrize(
    ("raised", "reason"),
    [
        (httpx2.ReadError("secret"), "lost the connection"),
        (httpx2.RemoteProtocolError("secret"), "lost the connection"),
        (httpx2.ConnectError("secret"), "cannot be reached"),
        (httpx2.ConnectTimeout("secret"), "cannot be reached in time"),
    ],
)
def test_transport_errors_are_failures(raised, reason):
    """Also in the wrapping of an SDK; their own words are not told."""
    for error in (raised, _wrapped(raised)):
        with pytest.raises(ModelFailure, match=f"^{reason}$") as failed, failures_told():
            raise error
        assert failed.value.__suppress_context__
        assert failed.value.__cause__ is None


def _wrapped(cause):
    error = RuntimeError("words of an SDK")
    error.__cause__ = cause
    return error


def test_other_errors_are_none():
    """A fault of ours stays one."""
    with pytest.raises(ZeroDivisionError), failures_told():
        _ = 1 / 0
