"""Identifiers as clients send them."""

from __future__ import annotations

import re
from typing import Final

from app.errors import NotFound

_UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def known(text: str, what: str) -> str:
    """Return an id that could be one of ours.

    Raises:
        NotFound: it could not, so it is answered as an id that does not exist. `what` names its kind.
    """
    if not _UUID.fullmatch(text):
        raise NotFound(f"no such {what}")
    return text
