"""How much may run, and how long."""

from __future__ import annotations

from typing import Any

import attrs

_positive: Any = attrs.validators.gt(0)
_not_negative: Any = attrs.validators.ge(0)


@attrs.frozen
class RunSettings:
    """What runs may take. Times are in seconds.

    Attributes:
        message_characters: characters of one message of a user.
        queued_per_thread: runs that wait in one thread.
        running: runs that run at once, all users together; the others stay queued.
        running_per_user: the same for one user.
        asking: runs that wait for a person without a place among the running ones, all users together.
        asking_per_user: the same for one user.
        requests: runs and calls that are open at once, all users together.
        requests_per_user: the same for one user.
        steps: how often one run may ask its model.
        tokens: how many tokens the model may use in one run, before it is asked no more.
        seconds: how long one run may take, without the time in which it waits for a person.
        approval_seconds: how long a person has to approve a tool call, by the wall clock.
        resumes: how often a run goes on after its server was lost, before it counts as the reason.
    """

    message_characters: int = attrs.field(default=32_000, validator=_positive)
    queued_per_thread: int = attrs.field(default=20, validator=_positive)
    running: int = attrs.field(default=2_000, validator=_positive)
    running_per_user: int = attrs.field(default=8, validator=_positive)
    asking: int = attrs.field(default=1_000, validator=_positive)
    asking_per_user: int = attrs.field(default=50, validator=_positive)
    requests: int = attrs.field(default=5_000, validator=_positive)
    requests_per_user: int = attrs.field(default=200, validator=_positive)
    steps: int = attrs.field(default=10, validator=_positive)
    tokens: int = attrs.field(default=1_000_000, validator=_positive)
    seconds: float = attrs.field(default=1800.0, validator=_positive)
    approval_seconds: float = attrs.field(
        default=3600.0,
        validator=attrs.validators.and_(attrs.validators.gt(0), attrs.validators.le(31_536_000)),
    )
    resumes: int = attrs.field(default=3, validator=_not_negative)
