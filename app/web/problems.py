"""Errors as RFC 9457 problems, made from the table of `app.errors`."""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import structlog
from quart import Response
from werkzeug.exceptions import HTTPException

from app.errors import InvalidField, InvalidGrant, Unauthenticated, code_of, is_fault, message_of, outcome_of
from app.wire.codec import encode_json
from nurseries.errors import InvalidContext, OutcomeUnknown, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from quart import Quart

CONTENT_TYPE: Final = "application/problem+json"

# The stable codes of what the HTTP layer itself refuses; another status is called by its standard phrase.
_CODES: Final[Mapping[int, str]] = {400: "bad_request", 404: "not_found", 408: "timeout", 413: "too_large"}

logger = structlog.get_logger(__name__)


def problem(
    status: int, code: str, detail: str, *, headers: dict[str, str] | None = None, **members: Any
) -> Response:
    """Return a problem response.

    Args:
        status: of HTTP.
        code: stable, for programs.
        detail: for people; it may repeat what a client sent, and so is made safe to encode.
        headers: more headers.
        members: more members of the body.
    """
    body = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "code": code,
        "detail": detail.encode(errors="backslashreplace").decode(),
        **members,
    }
    return Response(encode_json(body), status, headers, content_type=CONTENT_TYPE)


def problem_of(error: Exception) -> Response:
    """Return the problem that stands for `error`. A fault of ours is logged here, with its traceback."""
    if isinstance(error, HTTPException):
        return _of_http_exception(error)
    if is_fault(error):
        logger.error("a request failed", exc_info=error)
    members: dict[str, Any] = {}
    if isinstance(error, (InvalidField, InvalidContext)):
        members["field"] = error.field
    if isinstance(error, InvalidGrant):
        members["error"] = error.code  # as RFC 6749, 5.2 spells it
    return problem(
        outcome_of(error).status, code_of(error), message_of(error), headers=_headers_of(error), **members
    )


def install_problems(app: Quart, tell: Callable[[Exception], None] | None = None) -> None:
    """Answer every error of `app`, known or not, with a problem, and tell somebody of it."""

    async def answer(error: Exception) -> Response:
        if tell is not None:
            tell(error)
        return problem_of(error)

    # Quart looks for a handler of an HTTPException by its status first, and of the rest by class.
    app.register_error_handler(HTTPException, answer)
    app.register_error_handler(Exception, answer)


def _headers_of(error: Exception) -> dict[str, str]:
    if isinstance(error, Unauthenticated):
        return {"WWW-Authenticate": "Bearer"}
    if isinstance(error, Unavailable):
        return {"Retry-After": str(max(1, math.ceil(error.retry_after)))}
    if isinstance(error, OutcomeUnknown):
        return {"Retry-After": "1"}
    return {}


def _of_http_exception(error: HTTPException) -> Response:
    status = error.code or 500
    code = _CODES.get(status) or HTTPStatus(status).phrase.lower().replace(" ", "_").replace("-", "_")
    # Of Werkzeug's own headers only Allow says something that the problem does not.
    headers = {name: value for name, value in error.get_headers() if name == "Allow"}
    return problem(status, code, HTTPStatus(status).description or HTTPStatus(status).phrase, headers=headers)
