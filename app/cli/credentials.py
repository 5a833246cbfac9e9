"""Who the terminal client is: a token cache, and every way to a fresh access token."""

from __future__ import annotations

import fcntl
import getpass
import os
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs
import msgspec
import trio

from app.cli.client import Api, Tokens
from app.cli.failures import NotAuthenticated, Refused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

LOCK_SECONDS: Final = 20.0
"""How long another client may hold the cache while it renews its token."""


def cache_path() -> Path:
    """Return where tokens are kept (XDG Base Directory: state that need not survive a move)."""
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(state) / "nurseries" / "tokens.json"


@attrs.frozen
class TokenCache:
    """Logins by server and account, in one file that only its owner reads.

    A refresh token works once, and a second use ends the whole session. Two clients of one person share
    this file, so whoever renews holds its lock, and looks first whether the other has just renewed.
    """

    path: Path

    @asynccontextmanager
    async def locked(self) -> AsyncIterator[None]:
        """Hold the cache against the other clients of this machine.

        Raises:
            NotAuthenticated: somebody else held it for too long.
        """
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            give_up = trio.current_time() + LOCK_SECONDS
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if trio.current_time() > give_up:
                        raise NotAuthenticated(f"another client has held {self.path} for too long") from None
                    await trio.sleep(0.05)  # a lock of the kernel's has nothing to wait on
            yield
        finally:
            os.close(descriptor)

    def load(self, key: str) -> Tokens | None:
        """Return the tokens kept under `key`; a file that cannot be read holds none."""
        return self._all().get(key)

    def accounts(self, url: str) -> list[str]:
        """Return the email addresses that are logged in at a server."""
        return [key.rpartition(" ")[2] for key in self._all() if key.startswith(f"{url.rstrip('/')} ")]

    def store(self, key: str, tokens: Tokens | None) -> None:
        """Keep tokens under `key`, or forget them. The file is replaced as a whole."""
        every = self._all()
        if tokens is None:
            every.pop(key, None)
        else:
            every[key] = tokens
        fresh = self.path.with_suffix(".new")
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(msgspec.json.encode(every))
        fresh.replace(self.path)

    def _all(self) -> dict[str, Tokens]:
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=dict[str, Tokens])
        except (OSError, ValueError):
            return {}


class Credentials:
    """An account at one server, and its present access token.

    Attributes:
        user_id: whose it is, once `check` has asked.
    """

    def __init__(self, api: Api, cache: TokenCache, url: str, email: str, password: str | None) -> None:
        self._api = api
        self._cache = cache
        self._key = f"{url.rstrip('/')} {email.casefold()}"
        self._email = email
        self._password = password
        self._tokens: Tokens | None = None
        self.user_id = ""

    async def token(self) -> str:
        """Return an access token that is good for a while.

        Raises:
            NotAuthenticated: neither the cache, nor a refresh, nor a password gives one.
        """
        if self._tokens is None or not self._tokens.is_fresh:
            await self.renew()
        assert self._tokens is not None
        return self._tokens.access_token

    async def renew(self) -> None:
        """Get another access token than the present one: somebody else's, a refreshed one, or a new login.

        Raises:
            NotAuthenticated: none of them is to be had.
        """
        async with self._cache.locked():
            known = self._cache.load(self._key)
            mine = self._tokens.access_token if self._tokens is not None else None
            if known is not None and known.access_token != mine and known.is_fresh:
                self._tokens = known
                return
            self._tokens = await self._refreshed(known) or await self._logged_in()
            self._cache.store(self._key, self._tokens)

    async def adopt(self, tokens: Tokens) -> None:
        """Go on with a session that was opened elsewhere."""
        async with self._cache.locked():
            self._tokens = tokens
            self._cache.store(self._key, tokens)

    def expire(self) -> None:
        """Take note that the server does not accept the present token any more."""
        if self._tokens is not None:
            self._tokens = attrs.evolve(self._tokens, expires_at=0.0)

    async def check(self) -> None:
        """Make sure that the server takes the present token: a session may have been ended meanwhile."""
        try:
            self.user_id = await self._api.me(await self.token())
        except Refused as refused:
            if refused.status != 401:
                raise
            await self.renew()
            self.user_id = await self._api.me(await self.token())

    async def register(self) -> None:
        """Make the account. Logging in to it comes after."""
        assert self._password is not None
        await self._api.register(self._email, self._password)

    async def _refreshed(self, known: Tokens | None) -> Tokens | None:
        if known is None:
            return None
        try:
            return await self._api.refresh(known.refresh_token)
        except Refused as refused:
            if refused.status not in {400, 401}:
                raise
            return None  # that session is over

    async def _logged_in(self) -> Tokens:
        if self._password is None:
            self._cache.store(self._key, None)
            raise NotAuthenticated(
                f"{self._email} is not logged in here: use --password or NURSERIES_PASSWORD"
            )
        try:
            return await self._api.login(self._email, self._password)
        except Refused as refused:
            if refused.status == 401:
                raise NotAuthenticated(
                    f"{self._email}: the server does not accept this password"
                ) from refused
            raise


async def sign_in(api: Api, url: str, link: str) -> Credentials:
    """Use up a sign-in link, or the code in it, and keep the session as a login's is kept.

    Raises:
        NotAuthenticated: the code is used, expired or wrong.
    """
    try:
        tokens = await api.signin(link.rpartition("#signin=")[2])
    except Refused as refused:
        if refused.status != 400:
            raise
        raise NotAuthenticated("this sign-in link is used, expired or wrong") from refused
    cache = TokenCache(cache_path())
    credentials = Credentials(api, cache, url, await api.email(tokens.access_token), None)
    await credentials.adopt(tokens)
    await credentials.check()
    return credentials


async def administrator(
    api: Api, url: str, email: str | None, password: str | None, token: str | None
) -> Callable[[], Awaitable[str]]:
    """Return what gives an administrator's access token: the one that was given, or that of an account.

    Raises:
        NotAuthenticated: the account cannot log in.
    """
    if token is None:
        return (await authenticate(api, url, email, password, register=False)).token
    given = token

    async def same() -> str:
        await trio.lowlevel.checkpoint()
        return given

    return same


async def authenticate(
    api: Api, url: str, email: str | None, password: str | None, *, register: bool
) -> Credentials:
    """Find out who this is, asking at the terminal for what flags, variables and the cache do not say.

    Without an email address it is the account that is logged in at this server, if there is exactly one.

    The questions block the loop: nothing else runs yet, and Ctrl-C then works as everywhere.

    Raises:
        NotAuthenticated: something is missing and there is no terminal to ask at, or it is wrong.
    """
    cache = TokenCache(cache_path())
    known = [] if register else cache.accounts(url)
    email = email or (known[0] if len(known) == 1 else _ask("email: "))
    if register:
        password = password or _ask("choose a password: ", secret=True)
    credentials = Credentials(api, cache, url, email, password)
    if register:
        await credentials.register()
    try:
        await credentials.check()
    except NotAuthenticated:
        if password is not None or not sys.stdin.isatty():
            raise
    else:
        return credentials
    credentials = Credentials(api, cache, url, email, _ask(f"password of {email}: ", secret=True))
    try:
        await credentials.check()
    except NotAuthenticated as wrong:
        sys.stderr.write(f"{wrong}\n")
        if _ask("is this a new account, to be made now? [y/N] ").casefold() not in {"y", "yes"}:
            raise
        await credentials.register()
        await credentials.check()
    return credentials


def _ask(question: str, *, secret: bool = False) -> str:
    if not sys.stdin.isatty():
        raise NotAuthenticated(
            f"no terminal to ask ({question.rstrip(': ')}): use --email and --password,"
            " or NURSERIES_EMAIL and NURSERIES_PASSWORD"
        )
    try:
        if secret:
            return getpass.getpass(question)
        sys.stderr.write(question)
        sys.stderr.flush()
        return sys.stdin.readline().strip()
    except EOFError:
        raise NotAuthenticated("nothing was entered") from None
