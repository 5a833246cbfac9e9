"""Identifiers as clients send them."""

from __future__ import annotations

from app.errors import NotFound
from nurseries.ids import is_id


def known(text: str, what: str) -> str:
    """Return an id that could be one of ours.

    Raises:
        NotFound: it could not, so it is answered as an id that does not exist. `what` names its kind.
    """
    if not is_id(text):
        raise NotFound(f"no such {what}")
    return text
