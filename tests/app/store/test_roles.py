"""The login roles: what they are not, how they are made by an owner with few rights, and how they log in."""

import secrets
import socket
from contextlib import asynccontextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from app.store.migrate import migrate
from app.store.owner import open_owner
from app.store.roles import PARTS, ensure_login_roles, login_role, scram_verifier
from nurseries.errors import StartupFailed
from nurseries.postgres import cluster as cluster_module
from nurseries.postgres.binaries import Installation
from nurseries.postgres.embedded import open_embedded

HBA = "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
DEBIAN_15 = Installation(Path("/usr/lib/postgresql/15"), 15)


async def prepare(conninfo):
    async with open_owner(conninfo) as owner:
        await migrate(owner)
        return await ensure_login_roles(owner)


def execute(conninfo, *statements):
    with psycopg.connect(conninfo, autocommit=True) as connection:
        for statement in statements:
            cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class ExternalServer:
    """A PostgreSQL as somebody else runs it: over TCP, with passwords.

    Attributes:
        admin: connection string of its administrator.
    """

    def __init__(self, admin, port):
        self.admin = admin
        self.port = port

    def database(self, name, attributes="CREATEROLE"):
        """Make a database with an owner of the same name; returns the owner's connection string."""
        password = secrets.token_hex()
        execute(
            self.admin,
            f"CREATE ROLE {name} LOGIN {attributes} PASSWORD '{password}'",
            f"CREATE DATABASE {name} OWNER {name}",
        )
        return f"host=127.0.0.1 port={self.port} dbname={name} user={name} password={password}"


@asynccontextmanager
async def external_server(directory, monkeypatch, major):
    """Run PostgreSQL of the given major version as an `ExternalServer`."""
    find = cluster_module.find_installations

    async def find_wanted():
        return [one for one in [*await find(), DEBIAN_15] if one.major == major]

    monkeypatch.setattr(cluster_module, "find_installations", find_wanted)
    hba = directory.with_name("pg_hba.conf")
    hba.write_text(HBA)
    hba.chmod(0o644)
    port = free_port()
    settings = {"listen_addresses": "127.0.0.1", "port": str(port), "hba_file": str(hba), "fsync": "off"}
    async with open_embedded(directory, settings=settings) as postgres:
        yield ExternalServer(make_conninfo(postgres.conninfo(), port=port), port)


@pytest.fixture(
    params=[
        pytest.param(
            15,
            marks=pytest.mark.skipif(
                not DEBIAN_15.program("initdb").exists(),
                reason="PostgreSQL 15 is not installed on this system",
            ),
        ),
        16,
        18,
    ]
)
def major(request):
    return request.param


async def test_an_owner_with_few_rights_is_enough(data_dir, monkeypatch, major):
    """On a server of somebody else: CREATEROLE suffices, the roles log in with their passwords, and with no other."""
    async with external_server(data_dir, monkeypatch, major) as server:
        owner = server.database("chat")
        first = await prepare(owner)
        second = await prepare(owner)  # another server on the same database does not lock the first one out
        for part in PARTS:
            for access in (first, second):
                assert execute(getattr(access, part), "SELECT current_user") == [(f"chat_{part}_login",)]
            wrong = make_conninfo(getattr(first, part), password="wrong")
            with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
                execute(wrong, "SELECT 1")
        assert execute(first.request, "SELECT user_id FROM threads") == []
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            execute(first.request, "ALTER ROLE chat_request_login BYPASSRLS")


async def test_an_owner_without_the_right_is_told_what_to_grant(data_dir, monkeypatch, major):
    """The command in the message is the one that helps."""
    async with external_server(data_dir, monkeypatch, major) as server:
        owner = server.database("chat", attributes="")
        with pytest.raises(StartupFailed, match='run: ALTER ROLE "chat" CREATEROLE'):
            await prepare(owner)
        execute(server.admin, 'ALTER ROLE "chat" CREATEROLE')
        await prepare(owner)


async def test_two_databases_of_two_owners_in_one_cluster(data_dir, monkeypatch):
    """The group roles belong to the first owner: the second is told which rights to ask for."""
    async with external_server(data_dir, monkeypatch, 18) as server:
        await prepare(server.database("one"))
        two = server.database("two")
        for part in PARTS:
            grant = f"GRANT nurseries_{part} TO two WITH ADMIN OPTION"
            with pytest.raises(StartupFailed, match=grant):
                await prepare(two)
            execute(server.admin, grant)
        access = await prepare(two)
        assert execute(access.request, "SELECT user_id FROM threads") == []
        with pytest.raises(psycopg.OperationalError, match="authentication failed"):
            execute(make_conninfo(access.request, user="one_request_login"), "SELECT 1")


def test_the_login_roles_have_no_power(database):
    """None is a superuser, passes row-level security, makes roles or databases, owns anything or can become another."""
    roles = [conninfo_to_dict(getattr(database, part))["user"] for part in PARTS]
    groups = [f"nurseries_{part}" for part in PARTS]
    with psycopg.connect(database.owner) as owner:
        powers = owner.execute(
            "SELECT count(*), bool_or(rolsuper OR rolbypassrls OR rolcreaterole OR rolcreatedb OR rolreplication)"
            " FROM pg_roles WHERE rolname = ANY(%s)",
            [roles + groups],
        ).fetchone()
        assert powers == (2 * len(PARTS), False)
        owned = "SELECT count(*) FROM pg_class WHERE relowner = ANY(%s::regrole[])"
        assert owner.execute(owned, [roles + groups]).fetchone() == (0,)
        assert (
            owner.execute(
                "SELECT rolname FROM pg_roles WHERE rolcanlogin AND rolname = ANY(%s)", [groups]
            ).fetchall()
            == []
        )
        for role, group in zip(roles, groups, strict=True):
            member_of = owner.execute(
                "SELECT rolname FROM pg_roles WHERE pg_has_role(%s, oid, 'MEMBER') ORDER BY rolname <> %s",
                [role, role],
            ).fetchall()
            assert member_of == [(role,), (group,)]


@pytest.mark.parametrize(
    "excess", ["ALTER ROLE {} BYPASSRLS", "ALTER ROLE {} SUPERUSER", "GRANT postgres TO {}"]
)
async def test_a_role_with_more_rights_stops_the_start(database, excess):
    """A role that could pass row-level security is not used, whoever gave it the rights."""
    role = conninfo_to_dict(database.request)["user"]
    execute(database.owner, excess.format(role))
    with pytest.raises(StartupFailed, match=f'"{role}" has more rights than it may'):
        await prepare(database.owner)


async def test_the_password_is_in_no_statement(database):
    """What PostgreSQL is told, and may log, is the verifier and never the password."""
    password = conninfo_to_dict(database.request)["password"]
    role = conninfo_to_dict(database.request)["user"]
    [(stored,)] = execute(database.owner, f"SELECT rolpassword FROM pg_authid WHERE rolname = '{role}'")
    assert stored.startswith("SCRAM-SHA-256$1:")
    assert len(password) >= 43
    assert password not in scram_verifier(password)
    async with open_owner(database.owner) as owner:
        access = await ensure_login_roles(owner)
    assert password not in repr(access)


def test_role_names_fit():
    """Long and reserved names are replaced by a digest, equal for equal databases; groups are never hit."""
    assert login_role("nurseries", "request") == "nurseries_request_login"
    for name in ("x" * 63, "ä" * 31, "pg_chat"):
        names = {login_role(name, part) for part in PARTS}
        assert len(names) == len(PARTS)
        assert all(len(role.encode()) <= 63 and not role.startswith("pg_") for role in names)
        assert names == {login_role(name, part) for part in PARTS}
    assert login_role("x" * 62 + "a", "request") != login_role("x" * 62 + "b", "request")


async def test_a_database_with_a_difficult_name(cluster, nurseries_template):
    """Quotes, spaces, letters of any script and the longest possible name work."""
    name = 'my "chat" ünd ' + "x" * 40
    quoted = '"' + name.replace('"', '""') + '"'
    cluster.admin.execute(f"CREATE DATABASE {quoted} TEMPLATE {nurseries_template}")
    try:
        access = await prepare(make_conninfo(cluster.owner, dbname=name))
        assert execute(access.request, "SELECT current_database()") == [(name,)]
    finally:
        cluster.admin.execute(f"DROP DATABASE {quoted} WITH (FORCE)")
        for part in PARTS:
            cluster.admin.execute(f'DROP ROLE "{login_role(name, part)}"')
