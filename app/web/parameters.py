"""What a request says beside its body: the parameters of its query, and the headers that mean something here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from quart import request

from app.chat.keys import check_key
from app.errors import InvalidField

if TYPE_CHECKING:
    from collections.abc import Mapping

    from quart import Quart

PAGE: Final = 50
MAX_PAGE: Final = 200
_MAX_DIGITS: Final = 18


def refuse_unknown_parameters(app: Quart, known: Mapping[str, frozenset[str]]) -> None:
    """Answer 422 to a query parameter that a route of the API does not take, as to a field of a body.

    Args:
        app: whose routes.
        known: the parameters of each endpoint that takes any.
    """

    async def refuse() -> None:
        if request.path.startswith("/v1/") and request.endpoint:  # without one it is answered 404 or 405
            unknown = set(request.args) - known.get(request.endpoint, frozenset())
            if unknown:
                raise InvalidField(min(unknown), "no such parameter")

    app.before_request(refuse)


def flag(name: str) -> bool:
    """Return a parameter that is `true` or, by default, `false`.

    Raises:
        InvalidField: it is something else.
    """
    text = request.args.get(name, "false")
    if text not in {"true", "false"}:
        raise InvalidField(name, "must be true or false")
    return text == "true"


def page_limit() -> int:
    """Return how many entries a page may have.

    Raises:
        InvalidField: it is no number from 1 to `MAX_PAGE`.
    """
    limit = _number(request.args.get("limit", str(PAGE)))
    if limit is None or not 1 <= limit <= MAX_PAGE:
        raise InvalidField("limit", f"must be a number from 1 to {MAX_PAGE}")
    return limit


def cursor(header: str | None = None) -> int:
    """Return the number after which to go on: of `header`, where the request has it, or of the parameter `after`.

    Raises:
        InvalidField: it is no whole number.
    """
    name = header if header is not None and request.headers.get(header) else "after"
    after = _number(request.args.get("after", "0") if name == "after" else request.headers[name])
    if after is None:
        raise InvalidField(name, "must be a whole number")
    return after


def idempotency_key() -> str | None:
    """Return the `Idempotency-Key` of the request, if it has one.

    Raises:
        InvalidField: it is empty, too long, or cannot be printed.
    """
    key = request.headers.get("Idempotency-Key")
    check_key(key, "Idempotency-Key")
    return key


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS else None
