"""Who looks on when a lease is taken or given back: nobody, but in tests.

What is observed tells `taken` and `returned`; that costs a call and a comparison. Tests set `observer` for a while,
see `nurseries.testing.lease_ledger`; the product never does.
"""

from __future__ import annotations

from typing import Final, Protocol

LENT: Final = "connections lent"
SESSIONS: Final = "sessions with the database"
"""Two kinds of things; the others are places in a budget, and have its name."""


class Observer(Protocol):
    """Is told synchronously; must not raise."""

    def taken(self, kind: str, thing: object, holder: str) -> None:
        """`holder` has got `thing`: a place in a budget, a connection that was lent, a session with the database."""

    def returned(self, kind: str, thing: object) -> None:
        """The thing was given back or closed. More than once is harmless."""


observer: Observer | None = None


def taken(kind: str, thing: object, holder: str) -> None:
    """Tell whoever looks on."""
    if observer is not None:
        observer.taken(kind, thing, holder)


def returned(kind: str, thing: object) -> None:
    """Tell whoever looks on."""
    if observer is not None:
        observer.returned(kind, thing)
