"""The roles that the server logs in with. None owns a table, none bypasses row-level security.

What each may do is granted to a group role in the migrations. Roles belong to the whole PostgreSQL cluster, so
every database has login roles of its own, and a password of its own for each.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from typing import TYPE_CHECKING, Final

import attrs
from psycopg.conninfo import make_conninfo

from app.store.secrets import load_or_create
from nurseries.errors import StartupFailed
from nurseries.postgres.failures import QueryFailed

if TYPE_CHECKING:
    from app.store.owner import Owner

PARTS: Final = ("request", "accounts", "journal", "audit")
"""The parts of the server that log in apart: of each there is a group role in the migrations."""

_NAME_BYTES: Final = 63  # PostgreSQL's NAMEDATALEN, less its closing NUL
_INSUFFICIENT_PRIVILEGE: Final = "42501"
# More iterations slow down the guessing of passwords that people choose; these are 256 random bits.
_SCRAM_ITERATIONS: Final = 1


@attrs.frozen
class StoreAccess:
    """Connection strings, one for each of the parts that the server is kept apart in. They hold passwords."""

    request: str = attrs.field(repr=False)
    accounts: str = attrs.field(repr=False)
    journal: str = attrs.field(repr=False)
    audit: str = attrs.field(repr=False)


async def ensure_login_roles(owner: Owner) -> StoreAccess:
    """Make the login roles of the owner's database if need be, and return how to log in with them.

    The passwords follow from a secret that only the owner can read, so that servers which share a database,
    or follow one another, do not lock each other out.

    Raises:
        StartupFailed: the owner may not make or use the roles, or one of them has rights that would let it
            pass row-level security.
    """
    [(database,)] = await owner.fetch("SELECT current_database()")
    secret = await load_or_create(owner, "login_roles", os.urandom(32))
    access = {}
    for part in PARTS:
        name = login_role(database, part)
        password = base64.urlsafe_b64encode(hmac.digest(secret, name.encode(), "sha256")).decode()
        await _ensure_role(owner, name, f"nurseries_{part}", password)
        access[part] = make_conninfo(owner.conninfo, user=name, password=password, dbname=database)
    return StoreAccess(**access)


def login_role(database: str, part: str) -> str:
    """Return the name of the role that the server uses for `part` of `database`."""
    name = f"{database}_{part}_login"
    if len(name.encode()) > _NAME_BYTES or name.startswith("pg_"):  # which PostgreSQL keeps for itself
        name = f"db_{hashlib.sha256(database.encode()).hexdigest()[:24]}_{part}_login"
    return name


async def _ensure_role(owner: Owner, name: str, group: str, password: str) -> None:
    quoted = '"' + name.replace('"', '""') + '"'
    exists = await owner.fetch("SELECT 1 FROM pg_roles WHERE rolname = $1", name)
    # To name an attribute in ALTER ROLE takes the rights to give it, so there it is only looked at, below.
    action = (
        "ALTER ROLE {} LOGIN"
        if exists
        else "CREATE ROLE {} LOGIN INHERIT NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE"
    )
    try:
        await owner.run(
            f"{action.format(quoted)} PASSWORD '{scram_verifier(password)}'; GRANT {group} TO {quoted}"
        )
    except QueryFailed as error:
        if error.sqlstate != _INSUFFICIENT_PRIVILEGE:
            raise
        [(user,)] = await owner.fetch("SELECT quote_ident(current_user)")
        raise StartupFailed(
            f"the database user {user} may not manage the role {quoted} ({error});"
            f" as an administrator of the database run: GRANT {group} TO {user} WITH ADMIN OPTION;"
            f" and if the role was made by another user: DROP ROLE {quoted}"
        ) from error
    excess = await owner.fetch(
        "SELECT rolname FROM pg_roles WHERE rolname = ANY($1) AND (rolsuper OR rolbypassrls OR rolcreaterole"
        " OR rolcreatedb OR rolreplication)"
        " UNION SELECT rolname FROM pg_roles WHERE NOT rolname = ANY($1) AND pg_has_role($2, oid, 'MEMBER')",
        [name, group],
        name,
    )
    if excess:
        raise StartupFailed(
            f"the role {quoted} has more rights than it may, through {', '.join(row[0] for row in excess)};"
            f" take them away, or run: DROP ROLE {quoted}"
        )


def scram_verifier(password: str) -> str:
    """Return what PostgreSQL stores for `password` (RFC 5803), so that the password itself is in no statement and no log.

    Args:
        password: ASCII, as SASLprep would change nothing in it.
    """
    salt = os.urandom(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, _SCRAM_ITERATIONS)
    stored_key = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    encoded = [base64.b64encode(value).decode() for value in (salt, stored_key, server_key)]
    return f"SCRAM-SHA-256${_SCRAM_ITERATIONS}:{encoded[0]}${encoded[1]}:{encoded[2]}"
