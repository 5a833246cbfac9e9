"""Closing things: always shielded, always with a deadline."""

from __future__ import annotations

from typing import Final

import trio

CLEANUP_SECONDS: Final = 5.0
"""How long anything may take to clean up after itself before it is abandoned to its discard path."""


def cleanup_scope(seconds: float = CLEANUP_SECONDS) -> trio.CancelScope:
    """Return the scope that every cleanup runs in.

    A shield alone can hang a shutdown for ever; a deadline alone is cut short by the cancellation that
    caused the cleanup. `cancelled_caught` on the returned scope says that the cleanup did not finish.
    """
    return trio.CancelScope(shield=True, deadline=trio.current_time() + seconds)
