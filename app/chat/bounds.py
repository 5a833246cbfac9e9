"""How much may run, and how long."""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class RunBounds:
    """Bounds of what may be asked for.

    Attributes:
        message_characters: of one message.
        queued_per_thread: runs that wait in one thread.
        running_per_user: runs of one user that run at once.
        running: the same, all users together.
        asking_per_user: runs of one user that wait for a person without a place among the running ones.
        asking: the same, all users together.
        seconds: how long one may run, without the time in which it waits for a person.
        approval_seconds: how long a person has to decide about a call.
        resumes: how often a run may go on after its server was lost.
    """

    message_characters: int = 32_000
    queued_per_thread: int = 20
    running_per_user: int = 8
    running: int = 2_000
    asking_per_user: int = 50
    asking: int = 1_000
    seconds: float = 1800.0
    approval_seconds: float = 3600.0
    resumes: int = 3
