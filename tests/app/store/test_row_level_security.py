"""The database itself keeps users apart, whatever the code above it does. Raw SQL, the roles the server logs in with."""

from uuid import uuid4

import psycopg
import pytest
from psycopg.errors import ForeignKeyViolation, InsufficientPrivilege

FIND_TABLES = """
    SELECT c.relname, c.relkind, c.relrowsecurity AND c.relforcerowsecurity
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN information_schema.columns i
        ON (i.table_schema, i.table_name, i.column_name) = (n.nspname, c.relname, 'user_id')
    WHERE n.nspname NOT IN ('pg_catalog', 'information_schema')
    ORDER BY c.relname
"""

# How a row of each table is made for a user who has a thread and a session. A table that is new needs an entry here.
MAKE_ROW = {
    "users": "INSERT INTO users (user_id, email, email_key, password_hash) VALUES (%(user)s, %(new)s, %(new)s, '')",
    "sessions": "INSERT INTO sessions (session_id, user_id, expires_at) VALUES (%(new)s, %(user)s, now())",
    "refresh_tokens": "INSERT INTO refresh_tokens (token_hash, session_id, user_id, expires_at)"
    " VALUES (%(new)s::text::bytea, %(session)s, %(user)s, now())",
    "tickets": "INSERT INTO tickets (ticket_hash, session_id, user_id, expires_at)"
    " VALUES (%(new)s::text::bytea, %(session)s, %(user)s, now())",
    "threads": "INSERT INTO threads (thread_id, user_id) VALUES (%(new)s, %(user)s)",
    "runs": "INSERT INTO runs (run_id, thread_id, user_id, agent, status)"
    " VALUES (%(new)s, %(thread)s, %(user)s, 'assistant', 'queued')",
    "messages": "INSERT INTO messages (message_id, thread_id, user_id, run_id, role, content)"
    " VALUES (%(new)s, %(thread)s, %(user)s, %(new)s, 'user', 'hello')",
    "events": "INSERT INTO events (thread_id, first_seq, last_seq, user_id, lines)"
    " VALUES (%(thread)s, 1 + (random() * 1e9)::int, 2e9, %(user)s, '{}')",
    "idempotency_keys": "INSERT INTO idempotency_keys (user_id, key, fingerprint, answer)"
    " VALUES (%(user)s, %(new)s, '', '{}')",
    "checkpoints": "WITH run AS (INSERT INTO runs (run_id, thread_id, user_id, agent, status)"
    " VALUES (%(new)s, %(thread)s, %(user)s, 'assistant', 'running') RETURNING run_id)"
    " INSERT INTO checkpoints (kept_by, run_id, thread_id, user_id, step, output, state, models)"
    " SELECT run_id::text, run_id, %(thread)s, %(user)s, 1, '', '', '{}' FROM run",
    "approvals": "WITH run AS (INSERT INTO runs (run_id, thread_id, user_id, agent, status)"
    " VALUES (%(new)s, %(thread)s, %(user)s, 'assistant', 'running') RETURNING run_id)"
    " INSERT INTO approvals (asked_by, call_id, run_id, thread_id, user_id, tool, arguments, expires_at)"
    " SELECT run_id::text, 'call', run_id, %(thread)s, %(user)s, 'tool', '{}', now() FROM run",
    "files": "INSERT INTO files (file_id, user_id, name, table_name, kind, bytes, row_count, columns)"
    " VALUES (%(new)s, %(user)s, 'a.csv', %(new)s, 'csv', 1, 1, '[]')",
    "file_pieces": "WITH file AS (INSERT INTO files (file_id, user_id, name, table_name, kind, bytes, row_count, columns)"
    " VALUES (%(new)s, %(user)s, 'a.csv', %(new)s, 'csv', 1, 1, '[]') RETURNING file_id)"
    " INSERT INTO file_pieces (file_id, number, user_id, data) SELECT file_id, 0, %(user)s, 'x' FROM file",
    "tool_credentials": "INSERT INTO tool_credentials (user_id, server, sealed) VALUES (%(user)s, %(new)s, 'x')",
    "audit": "INSERT INTO audit (entry_id, occurred_at, last_at, count, kind, user_id, details)"
    " VALUES (%(new)s, now(), now(), 1, 'login', %(user)s, '{}')",
}
CLOSED = {"audit"}
"""Tables of which a request sees nothing, not even what is about its user."""

OPEN = sorted(MAKE_ROW.keys() - CLOSED)


class Population:
    """Two users with a row of each in every table."""

    def __init__(self, owner):
        self.owner = owner
        self.alice = {"user": uuid4(), "thread": uuid4(), "session": uuid4()}
        self.bob = {"user": uuid4(), "thread": uuid4(), "session": uuid4()}
        for user in (self.alice, self.bob):
            owner.execute(MAKE_ROW["users"], user | {"new": user["user"]})
            owner.execute(MAKE_ROW["threads"], user | {"new": user["thread"]})
            owner.execute(MAKE_ROW["sessions"], user | {"new": user["session"]})
            for table in MAKE_ROW.keys() - {"users", "threads", "sessions"}:
                owner.execute(MAKE_ROW[table], user | {"new": uuid4()})

    def content(self, table):
        return sorted(map(str, self.owner.execute(f"SELECT * FROM {table}").fetchall()))


@pytest.fixture
def owner(database):
    with psycopg.connect(database.owner, autocommit=True) as connection:
        yield connection


@pytest.fixture
def population(owner):
    return Population(owner)


@pytest.fixture
def request_role(database):
    """A raw connection as the server makes it for users' requests; every statement is a transaction."""
    with psycopg.connect(database.request, autocommit=True) as connection:
        yield connection


def acting_for(connection, user):
    """Return the transaction of one user, as the server opens it."""
    connection.execute("BEGIN")
    connection.execute("SELECT set_config('app.user_id', %s, true)", [str(user)])


def attempt(connection, user, sql, parameters):
    """Run a statement for a user; returns the rows it changed, or the error's class. Nothing of it stays."""
    acting_for(connection, user)
    try:
        return connection.execute(sql, parameters).rowcount
    except psycopg.Error as error:
        return type(error)
    finally:
        connection.execute("ROLLBACK")


def test_every_table_with_a_user_forces_row_level_security(owner):
    """Tables are found in the catalogue, so a new one cannot be forgotten: here, nor in the tests below."""
    found = owner.execute(FIND_TABLES).fetchall()
    unprotected = [name for name, kind, forced in found if kind in "rp" and not forced]
    assert unprotected == []
    tables = {name for name, kind, _ in found if kind in "rp"}
    assert tables == MAKE_ROW.keys(), "give MAKE_ROW an entry for each table that has a user_id"


def test_every_view_asks_for_the_rights_of_its_caller(owner):
    """A view without security_invoker would read with its owner's eyes."""
    views = owner.execute(
        "SELECT relname FROM pg_class WHERE relkind IN ('v', 'm') AND relnamespace = 'public'::regnamespace"
        " AND NOT coalesce(reloptions @> '{security_invoker=true}', false)"
    ).fetchall()
    assert views == []


def test_the_schema_has_one_function_with_its_owners_rights(owner):
    """A SECURITY DEFINER function could be a way around every policy: there is one, and the trail alone may call it."""
    assert owner.execute(
        "SELECT proname, array(SELECT rolname::text FROM pg_roles WHERE rolname LIKE 'nurseries%'"
        " AND has_function_privilege(rolname, p.oid, 'EXECUTE'))"
        " FROM pg_proc p WHERE prosecdef AND pronamespace = 'public'::regnamespace"
    ).fetchall() == [("expire_audit", ["nurseries_audit"])]


@pytest.mark.parametrize("table", sorted(CLOSED))
@pytest.mark.parametrize("role", ["request", "accounts", "journal"])
def test_a_closed_table_is_closed_to_every_other_part(database, population, table, role):
    """Neither a user's request nor a service reads it, adds to it or changes it, whoever is named."""
    alice = population.alice
    with psycopg.connect(getattr(database, role), autocommit=True) as connection:
        for statement in (
            f"SELECT user_id FROM {table}",
            MAKE_ROW[table],
            f"UPDATE {table} SET user_id = NULL",
            f"DELETE FROM {table}",
            f"TRUNCATE {table}",
        ):
            assert (
                attempt(connection, alice["user"], statement, alice | {"new": uuid4()})
                is InsufficientPrivilege
            )


@pytest.mark.parametrize("table", OPEN)
def test_without_a_user_there_are_no_rows(request_role, population, table):
    """Neither a connection that never named a user nor one that did in its last transaction sees anything."""
    assert len(population.content(table)) >= 2
    assert request_role.execute(f"SELECT user_id FROM {table}").fetchall() == []
    acting_for(request_role, population.alice["user"])
    request_role.execute("COMMIT")
    assert request_role.execute(f"SELECT user_id FROM {table}").fetchall() == []


@pytest.mark.parametrize("table", OPEN)
def test_a_user_sees_their_own_rows_and_no_others(request_role, population, table):
    """With a user named, that user's rows are there, and only they."""
    for user in (population.alice["user"], population.bob["user"]):
        acting_for(request_role, user)
        assert set(request_role.execute(f"SELECT user_id FROM {table}").fetchall()) == {(user,)}
        request_role.execute("COMMIT")


@pytest.mark.parametrize("table", OPEN)
def test_a_user_cannot_change_the_rows_of_another(request_role, population, table):
    """Insert in another's name, update, take over, give away, delete: refused or without effect."""
    alice, bob = population.alice, population.bob
    before = population.content(table)
    named = {"alice": alice["user"], "bob": bob["user"]}
    attempts = {
        "insert": (MAKE_ROW[table], bob | {"new": uuid4()}),
        "update": (f"UPDATE {table} SET user_id = user_id WHERE user_id = %(bob)s", named),
        "take over": (f"UPDATE {table} SET user_id = %(alice)s WHERE user_id = %(bob)s", named),
        "delete": (f"DELETE FROM {table} WHERE user_id = %(bob)s", named),
    }
    results = {name: attempt(request_role, alice["user"], *statement) for name, statement in attempts.items()}
    assert results.pop("insert") is InsufficientPrivilege
    assert set(results.values()) <= {0, InsufficientPrivilege}
    give_away = f"UPDATE {table} SET user_id = %(bob)s WHERE user_id = %(alice)s"
    assert attempt(request_role, alice["user"], give_away, named) is InsufficientPrivilege
    acting_for(request_role, alice["user"])
    try:
        request_role.execute(f"DELETE FROM {table}")
    except InsufficientPrivilege:
        request_role.execute("ROLLBACK")
    else:  # all that Alice could delete was her own
        request_role.execute("COMMIT")
    of_bob = [row for row in before if str(bob["user"]) in row]
    assert [row for row in population.content(table) if str(bob["user"]) in row] == of_bob


@pytest.mark.parametrize("table", ["threads", "runs", "messages", "idempotency_keys"])
def test_a_user_can_write_their_own_rows(request_role, population, table):
    """The refusals above are about whose row it is, and not about a role that may write nothing."""
    alice = population.alice
    assert attempt(request_role, alice["user"], MAKE_ROW[table], alice | {"new": uuid4()}) == 1
    assert attempt(request_role, alice["user"], f"DELETE FROM {table}", {}) >= 1


@pytest.mark.parametrize("table", ["runs", "messages"])
def test_nothing_of_mine_can_lie_in_anothers_thread(request_role, population, table):
    """What belongs to a thread belongs to its user; another's thread is refused as one that does not exist."""
    for thread in (population.bob["thread"], uuid4()):
        row = population.alice | {"new": uuid4(), "thread": thread}
        assert attempt(request_role, population.alice["user"], MAKE_ROW[table], row) is ForeignKeyViolation


@pytest.mark.parametrize(
    ("role", "sql"),
    [
        ("request", "SELECT password_hash FROM users"),
        ("request", "SELECT token_hash FROM refresh_tokens"),
        ("request", "SELECT ticket_hash FROM tickets"),
        ("request", "INSERT INTO events SELECT * FROM events"),
        ("request", "SELECT FROM secrets"),
        ("request", "TRUNCATE threads"),
        ("request", "CREATE TABLE mine (n int)"),
        ("request", "ALTER TABLE threads NO FORCE ROW LEVEL SECURITY"),
        ("request", "SET ROLE nurseries_accounts"),
        ("request", "SET ROLE postgres"),
        ("accounts", "SELECT FROM secrets"),
        ("accounts", "SELECT FROM threads"),
        ("accounts", "SELECT FROM messages"),
        ("accounts", "SELECT FROM events"),
        ("accounts", "SELECT answer FROM idempotency_keys"),
        ("journal", "SELECT FROM secrets"),
        ("request", "INSERT INTO checkpoints SELECT * FROM checkpoints"),
        ("request", "DELETE FROM checkpoints"),
        ("request", "INSERT INTO approvals SELECT * FROM approvals"),
        ("request", "UPDATE approvals SET decision = 'approve'"),
        ("journal", "SELECT output FROM checkpoints"),
        ("journal", "SELECT state FROM checkpoints"),
        ("journal", "SELECT arguments FROM approvals"),
        ("journal", "SELECT note FROM approvals"),
        ("journal", "SELECT lines FROM events"),
        ("journal", "SELECT content FROM messages"),
        ("journal", "SELECT title FROM threads"),
        ("journal", "SELECT FROM users"),
        ("journal", "DELETE FROM events"),
        ("audit", "SELECT FROM secrets"),
        ("audit", "SELECT FROM users"),
        ("audit", "SELECT FROM events"),
        ("audit", "SELECT content FROM messages"),
        ("audit", "SELECT title FROM threads"),
        ("audit", "SELECT output FROM runs"),
        ("audit", "UPDATE threads SET user_id = user_id"),
        ("audit", "UPDATE audit_retention SET keep = '1 second'"),
    ],
)
def test_each_role_is_kept_to_its_part(database, role, sql):
    """No part of the server can read or change what is another part's business."""
    with psycopg.connect(getattr(database, role)) as connection, pytest.raises(InsufficientPrivilege):
        connection.execute(sql)


def test_even_the_owner_of_the_tables_is_held_to_the_policies(cluster, database, owner):
    """FORCE: an owner that is no superuser sees no user's rows either."""
    Population(owner)
    owner.execute(f"CREATE ROLE plain_{uuid4().hex[:8]} LOGIN")
    [(name,)] = owner.execute("SELECT rolname FROM pg_roles WHERE rolname LIKE 'plain%'").fetchall()
    try:
        for table in MAKE_ROW:
            owner.execute(f"ALTER TABLE {table} OWNER TO {name}")
        owner.execute(f"SET ROLE {name}")
        for table in MAKE_ROW:
            assert owner.execute(f"SELECT user_id FROM {table}").fetchall() == []
    finally:
        owner.execute("RESET ROLE")
        owner.execute(f"REASSIGN OWNED BY {name} TO postgres; DROP OWNED BY {name}; DROP ROLE {name}")
