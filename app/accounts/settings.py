"""What the account service may be told. Times are in seconds."""

from __future__ import annotations

from typing import Any

import attrs

_positive: Any = attrs.validators.gt(0)
_not_negative: Any = attrs.validators.ge(0)
_named: Any = attrs.validators.min_len(1)


@attrs.frozen
class HashCost:
    """The cost of one argon2id hash. The defaults are OWASP's second choice: 19 MiB, two passes, one lane.

    Attributes:
        memory_kib: memory of one hash, in KiB.
        passes: over that memory.
        lanes: computed side by side.
    """

    memory_kib: int = attrs.field(default=19_456, validator=attrs.validators.ge(8))
    passes: int = attrs.field(default=2, validator=_positive)
    lanes: int = attrs.field(default=1, validator=_positive)


@attrs.frozen
class AccountSettings:
    """Bounds and lifetimes.

    Attributes:
        registration: whether anybody may make an account.
        issuer: the `iss` of access tokens.
        audience: the `aud` of access tokens.
        access_seconds: life of an access token.
        session_seconds: life of a session from its login, and so of its last refresh token.
        sessions_per_user: sessions that one user may have at once; one more ends the oldest.
        ticket_seconds: life of a ticket for opening a socket.
        signin_seconds: life of a code that signs a user in.
        leeway_seconds: by how much another machine's clock may differ when a token's times are checked.
        hash_cost: of a password's hash.
        hash_waiters: how many may wait for the one hashing thread; the next one is told to come back.
        login_failures: failed logins an account and address together, within `login_window_seconds`.
        login_window_seconds: how long a failed login counts.
        login_keys: how many accounts and addresses are remembered; the least recent is forgotten first.
    """

    registration: bool = True
    issuer: str = attrs.field(default="nurseries", validator=_named)
    audience: str = attrs.field(default="nurseries", validator=_named)
    access_seconds: int = attrs.field(default=15 * 60, validator=_positive)
    session_seconds: int = attrs.field(default=30 * 24 * 3600, validator=_positive)
    sessions_per_user: int = attrs.field(default=100, validator=_positive)
    ticket_seconds: int = attrs.field(default=30, validator=_positive)
    signin_seconds: int = attrs.field(default=24 * 3600, validator=_positive)
    leeway_seconds: int = attrs.field(default=5, validator=_not_negative)
    hash_cost: HashCost = attrs.field(factory=HashCost)
    hash_waiters: int = attrs.field(default=256, validator=_positive)
    login_failures: int = attrs.field(default=10, validator=_positive)
    login_window_seconds: float = attrs.field(default=5 * 60, validator=_positive)
    login_keys: int = attrs.field(default=10_000, validator=_positive)
