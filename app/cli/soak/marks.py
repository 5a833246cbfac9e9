"""Whose an id is: the canaries of a soak."""

from __future__ import annotations

import re
from typing import Final
from uuid import uuid4

_ID: Final = re.compile(rb"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}")


class Marks:
    """Ids and canaries, each with the user it belongs to. All are UUIDs, so that one look finds any of them."""

    def __init__(self) -> None:
        self._owners: dict[bytes, str] = {}

    def add(self, user_id: str, mark: str) -> str:
        """Take note of an id of a user, and return it."""
        self._owners[mark.encode()] = user_id
        return mark

    def canary(self, user_id: str) -> str:
        """Return a word that only this user ever says."""
        return self.add(user_id, str(uuid4()))

    def foreign(self, user_id: str, data: bytes) -> set[str]:
        """Return the ids in `data`, of whatever kind, that belong to somebody else."""
        found = {mark for mark in _ID.findall(data) if self._owners.get(mark, user_id) != user_id}
        return {mark.decode() for mark in found}
