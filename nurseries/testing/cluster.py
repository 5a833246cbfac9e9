"""The PostgreSQL of a test run: one for all tests, and a database of its own for each test that asks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import attrs
import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.sql import SQL, Identifier

if TYPE_CHECKING:
    from collections.abc import Iterator

_ROOMY_BYTES: Final = 2**30
_STOP_SECONDS: Final = 30


@attrs.frozen(eq=False)
class Cluster:
    """The PostgreSQL of one test run.

    Attributes:
        owner: connection string of its superuser.
        admin: a connection of that superuser, outside any transaction.
    """

    owner: str = attrs.field(repr=False)
    admin: psycopg.Connection[Any]

    @contextmanager
    def database(self, template: str = "template1") -> Iterator[str]:
        """Lend a copy of the database `template`; yields its owner's connection string.

        PostgreSQL copies files, which takes some 20 ms, and only while nobody is connected to the template.
        """
        name = f"test_{uuid4().hex[:12]}"
        self.create(name, template)
        try:
            yield make_conninfo(self.owner, dbname=name)
        finally:
            self.drop(name)

    def create(self, name: str, template: str = "template1") -> str:
        """Make the database `name` as a copy of `template`; returns its owner's connection string."""
        statement = SQL("CREATE DATABASE {} TEMPLATE {}").format(Identifier(name), Identifier(template))
        self.admin.execute(statement)
        return make_conninfo(self.owner, dbname=name)

    def drop(self, name: str) -> None:
        """Remove the database `name`, whoever is connected to it."""
        self.admin.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(Identifier(name)))


def roomy_directory() -> str:
    """Where to put databases: in memory, if a gigabyte is free there, for a cluster is a thousand files."""
    memory = Path("/dev/shm")  # noqa: S108  # what lies in it is in a private directory
    if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > _ROOMY_BYTES:
        return str(memory)
    return tempfile.gettempdir()


@contextmanager
def running_cluster() -> Iterator[Cluster]:
    """Run an embedded PostgreSQL without durability for the body of the block, in a process of its own.

    However this process ends, that one notices and takes everything of the cluster away.

    Raises:
        RuntimeError: it did not start; why is in what it wrote to standard error.
    """
    command = [sys.executable, "-m", "nurseries.testing.cluster_process", roomy_directory()]
    with subprocess.Popen(  # noqa: S603  # our own module
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            owner = process.stdout.readline().strip()
            if not owner:
                raise RuntimeError("the tests' PostgreSQL did not start; its error stands above")
            with psycopg.connect(owner, autocommit=True) as admin:
                yield Cluster(owner, admin)
        finally:
            process.stdin.close()
            process.wait(_STOP_SECONDS)
