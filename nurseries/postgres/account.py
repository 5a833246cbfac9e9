"""Which account PostgreSQL runs as, and what that account can reach.

PostgreSQL refuses to run as root. A server that runs as root therefore hands the database to an account
that exists already and may do nothing else; everybody else runs the database as themselves.
"""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path
from typing import Final

import attrs

from nurseries.errors import StartupFailed

PREFERRED_ACCOUNTS: Final = ("postgres", "nobody")
"""Unprivileged accounts that a system may have already, best first. None is ever added."""


@attrs.frozen
class Account:
    """An unprivileged account of the operating system."""

    name: str
    uid: int
    gid: int

    def may_pass(self, directory: Path) -> bool:
        """Say whether the mode bits of `directory` let this account through it."""
        status = directory.stat()
        if status.st_uid == self.uid:
            return bool(status.st_mode & stat.S_IXUSR)
        if status.st_gid == self.gid:
            return bool(status.st_mode & stat.S_IXGRP)
        return bool(status.st_mode & stat.S_IXOTH)


def choose_account(name: str | None, cluster: Path) -> Account | None:
    """Return the account to run PostgreSQL as, or None for the one we run as ourselves.

    Args:
        name: what the operator asked for, if anything.
        cluster: the database's directory, which may not exist yet. Unless the operator says otherwise,
            what exists stays with the account that has it.

    Raises:
        StartupFailed: there is no such account, or it cannot be used.
    """
    owner = cluster.stat().st_uid if cluster.exists() else None
    if os.geteuid() != 0:
        if owner not in {None, os.geteuid()}:
            raise StartupFailed(
                f"{cluster} belongs to {_name(owner)}, and this server runs as {_name(os.geteuid())}:"
                f" start it as {_name(owner)}, or choose another data directory"
            )
        if name not in {None, _name(os.geteuid())}:
            raise StartupFailed(f"only root can run PostgreSQL as {name!r}; start the server as that account")
        return None
    if name is None and owner:
        name = _name(owner)
    for candidate in (name,) if name else PREFERRED_ACCOUNTS:
        try:
            entry = pwd.getpwnam(candidate)
        except KeyError:
            continue
        if entry.pw_uid == 0:
            raise StartupFailed(
                f"PostgreSQL does not run as {candidate!r}, which is root; name another account"
            )
        return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)
    wanted = repr(name) if name else " or ".join(map(repr, PREFERRED_ACCOUNTS))
    raise StartupFailed(
        f"PostgreSQL does not run as root, and this system has no account {wanted}:"
        " start the server as an ordinary user, or let it use an external PostgreSQL"
    )


def let_pass(directory: Path, account: Account) -> None:
    """Let `account`, and nobody else, through a directory that is closed to everybody but its owner.

    It is one of the server's own, as `mktemp -d` makes them; to list it stays the owner's right.
    """
    mode = stat.S_IMODE(directory.stat().st_mode)
    if not mode & (stat.S_IRWXG | stat.S_IRWXO) and not account.may_pass(directory):
        os.chown(directory, -1, account.gid)
        directory.chmod(mode | stat.S_IXGRP)


def require_passable(directory: Path, account: Account) -> None:
    """Make sure that `account` can get to what is in `directory`.

    Raises:
        StartupFailed: it cannot; the message names the directory on the way that stops it.
    """
    for step in (*reversed(directory.parents), directory):
        if not account.may_pass(step):
            raise StartupFailed(
                f"account {account.name!r}, which PostgreSQL runs as, cannot pass {step}:"
                f" choose another data directory, or allow it with: chmod o+x {step}"
            )


def hand_over(tree: Path, account: Account) -> None:
    """Give `tree` and all that is in it to `account`; the top last, so that its owner tells that all is done."""
    for directory, directories, files in os.walk(tree, topdown=False):
        for name in (*directories, *files):
            os.lchown(Path(directory, name), account.uid, account.gid)
    os.lchown(tree, account.uid, account.gid)


def _name(uid: int | None) -> str:
    if uid is None:
        return "nobody in particular"
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
