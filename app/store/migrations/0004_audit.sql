-- The security audit trail, and the one role that may write and read it. Nobody may change what is in it: no
-- role of the server holds UPDATE, DELETE or TRUNCATE, and a row says of itself neither its number nor when it
-- was written, which is what its age is counted from.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'nurseries_audit') THEN
        BEGIN
            CREATE ROLE nurseries_audit NOLOGIN NOSUPERUSER NOBYPASSRLS;
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL;  -- another database of this cluster was migrated at the same moment
        END;
    END IF;
END
$$;
GRANT USAGE ON SCHEMA public TO nurseries_audit;

-- No foreign keys: a trace outlives what it is about.
CREATE TABLE audit (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,   -- in the order of the commits: the cursor
    entry_id      uuid NOT NULL UNIQUE,       -- so that a COMMIT without an answer can be repeated
    occurred_at   timestamptz NOT NULL,
    last_at       timestamptz NOT NULL,       -- of the last one, where `count` equal ones are told in one entry
    count         integer NOT NULL CHECK (count > 0),
    kind          text NOT NULL CHECK (length(kind) <= 64),
    user_id       uuid,                       -- whose credential or thing it was
    presented_by  uuid,                       -- the user who came with it, where that is another one
    session_id    uuid,
    connection_id uuid,
    thread_id     uuid,
    run_id        uuid,
    address       text CHECK (length(address) <= 64),
    details       jsonb NOT NULL CHECK (octet_length(details::text) <= 4096),
    written_at    timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX audit_by_age ON audit (written_at);

ALTER TABLE audit ENABLE ROW LEVEL SECURITY;
ALTER TABLE audit FORCE ROW LEVEL SECURITY;
CREATE POLICY reads ON audit FOR SELECT TO nurseries_audit USING (true);
CREATE POLICY appends ON audit FOR INSERT TO nurseries_audit WITH CHECK (true);
GRANT SELECT ON audit TO nurseries_audit;
GRANT INSERT (
    entry_id, occurred_at, last_at, count, kind, user_id, presented_by, session_id, connection_id, thread_id,
    run_id, address, details
) ON audit TO nurseries_audit;

-- How long an entry is kept. The owner writes it, at the start of a server, from the settings.
CREATE TABLE audit_retention (
    only_row      boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    keep          interval NOT NULL CHECK (keep > '0')
);
INSERT INTO audit_retention (keep) VALUES ('90 days');
GRANT SELECT ON audit_retention TO PUBLIC;  -- the policy below reads it as whoever asks

-- What is too old is removed by this function and by nothing else. Its caller chooses neither what goes nor from
-- which age on. It acts as the owner of the table, whom FORCE holds to the policies too: they let the owner see
-- and remove what has expired, and no other row.
CREATE POLICY expired ON audit TO PUBLIC
    USING (written_at < now() - (SELECT keep FROM audit_retention)) WITH CHECK (false);

CREATE FUNCTION expire_audit(at_most integer) RETURNS bigint
    LANGUAGE sql SECURITY DEFINER
BEGIN ATOMIC
    WITH gone AS (
        DELETE FROM audit WHERE id IN (
            SELECT id FROM audit WHERE written_at < now() - (SELECT keep FROM audit_retention)
            ORDER BY written_at LIMIT at_most)
        RETURNING 1)
    SELECT count(*) FROM gone;
END;
REVOKE ALL ON FUNCTION expire_audit FROM PUBLIC;
GRANT EXECUTE ON FUNCTION expire_audit TO nurseries_audit;

-- Whose an id is that somebody asked for in vain. The trail asks for itself, later, so that the answer's time
-- does not tell. Ids and their users, and nothing of what is in them.
GRANT SELECT (thread_id, user_id) ON threads TO nurseries_audit;
GRANT SELECT (run_id, thread_id, user_id) ON runs TO nurseries_audit;
GRANT SELECT (message_id, thread_id, user_id) ON messages TO nurseries_audit;
CREATE POLICY trail ON threads FOR SELECT TO nurseries_audit USING (true);
CREATE POLICY trail ON runs FOR SELECT TO nurseries_audit USING (true);
CREATE POLICY trail ON messages FOR SELECT TO nurseries_audit USING (true);

-- For the bounds of what the account service keeps: the oldest used refresh tokens of one session go when they are
-- too many, sessions that were ended go before they would have expired, and what goes takes its tickets along.
CREATE INDEX refresh_tokens_by_use ON refresh_tokens (session_id, used_at);
DROP INDEX refresh_tokens_by_session;
CREATE INDEX sessions_by_revocation ON sessions (revoked_at) WHERE revoked_at IS NOT NULL;
CREATE INDEX tickets_by_session ON tickets (session_id);
