"""What the account service may be told. Times are in seconds."""

from __future__ import annotations

import attrs


@attrs.frozen
class HashCost:
    """The cost of one argon2id hash. The defaults are OWASP's second choice: 19 MiB, two passes, one lane."""

    memory_kib: int = 19_456
    passes: int = 2
    lanes: int = 1


@attrs.frozen
class AccountSettings:
    """Bounds and lifetimes.

    Attributes:
        registration: whether anybody may make an account.
        issuer: the `iss` of access tokens.
        audience: the `aud` of access tokens.
        access_seconds: life of an access token.
        session_seconds: life of a session from its login, and so of its last refresh token.
        ticket_seconds: life of a ticket for opening a socket.
        signin_seconds: life of a code that signs a user in.
        leeway_seconds: by how much another machine's clock may differ when a token's times are checked.
        hash_cost: of a password.
        hash_waiters: how many may wait for the one hashing thread; the next one is told to come back.
        login_failures: failed logins an account and address together, within `login_window_seconds`.
        login_window_seconds: how long a failed login counts.
        login_keys: how many accounts and addresses are remembered; the least recent is forgotten first.
    """

    registration: bool = True
    issuer: str = "nurseries"
    audience: str = "nurseries"
    access_seconds: int = 15 * 60
    session_seconds: int = 30 * 24 * 3600
    ticket_seconds: int = 30
    signin_seconds: int = 24 * 3600
    leeway_seconds: int = 5
    hash_cost: HashCost = attrs.field(factory=HashCost)
    hash_waiters: int = 256
    login_failures: int = 10
    login_window_seconds: float = 5 * 60
    login_keys: int = 10_000
