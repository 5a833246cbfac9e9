"""Fixtures for all tests: one PostgreSQL for the run, and a database of its own for each test that asks."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import attrs
import psycopg
import pytest
import trio
from psycopg.conninfo import make_conninfo

from app.logs import configure_logging
from app.store.owner import open_owner
from app.store.roles import StoreAccess, ensure_login_roles, login_role

configure_logging("debug")  # as the server logs: structlog's own default renders tracebacks for a second each


@attrs.frozen
class Cluster:
    """The PostgreSQL of this test run.

    Attributes:
        owner: connection string of its superuser.
        template: name of a database that is migrated, and to which nobody may be connected.
        admin: a connection of that superuser.
    """

    owner: str
    template: str
    admin: psycopg.Connection

    @contextmanager
    def database(self, template: str) -> Iterator[str]:
        """Lend a copy of `template`; yields the owner's connection string."""
        name = f"test_{uuid4().hex[:12]}"
        self.admin.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        try:
            yield make_conninfo(self.owner, dbname=name)
        finally:
            self.admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
            for part in ("request", "accounts", "journal"):
                self.admin.execute(f"DROP ROLE IF EXISTS {login_role(name, part)}")


@attrs.frozen
class Database:
    """A migrated database, empty of rows, with a connection string for each role."""

    owner: str
    access: StoreAccess

    @property
    def request(self) -> str:
        return self.access.request

    @property
    def accounts(self) -> str:
        return self.access.accounts

    @property
    def journal(self) -> str:
        return self.access.journal


def roomy_directory() -> str:
    """Where to put databases: in memory, if a gigabyte is free there, for a cluster is a thousand files."""
    memory = Path("/dev/shm")
    if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 2**30:
        return str(memory)
    return tempfile.gettempdir()


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """One PostgreSQL for the whole run, without durability."""
    with subprocess.Popen(
        [sys.executable, Path(__file__).parent / "fixtures" / "cluster.py", roomy_directory()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as server:
        try:
            line = server.stdout.readline()
            assert line, "the tests' PostgreSQL did not start; its error stands above"
            answer = json.loads(line)
            with psycopg.connect(answer["owner"], autocommit=True) as admin:
                yield Cluster(answer["owner"], answer["template"], admin)
        finally:
            server.stdin.close()
            server.wait(30)


@pytest.fixture
def database(cluster: Cluster) -> Iterator[Database]:
    """A migrated database of this test's own, with its login roles."""
    with cluster.database(cluster.template) as owner:
        yield Database(owner, trio.run(_ensure_login_roles, owner))


@pytest.fixture
def empty_database(cluster: Cluster) -> Iterator[str]:
    """A database of this test's own without any migration; its owner's connection string."""
    with cluster.database("template1") as owner:
        yield owner


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A place for a server's data. Unlike `tmp_path` it can be passed by every account, and its path is short."""
    with tempfile.TemporaryDirectory(prefix="nurseries-test-", dir=roomy_directory()) as place:
        Path(place).chmod(0o711)
        yield Path(place, "data")


async def _ensure_login_roles(conninfo: str) -> StoreAccess:
    async with open_owner(conninfo) as owner:
        return await ensure_login_roles(owner)
