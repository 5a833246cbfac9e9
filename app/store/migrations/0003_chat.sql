CREATE TABLE threads (
    thread_id     uuid PRIMARY KEY,
    user_id       uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    title         text NOT NULL DEFAULT '',
    created_at    timestamptz NOT NULL DEFAULT now(),
    UNIQUE (thread_id, user_id)               -- so that what belongs to a thread belongs to its user, below
);
CREATE INDEX threads_by_user ON threads (user_id, thread_id DESC);

CREATE TABLE runs (
    run_id        uuid PRIMARY KEY,
    thread_id     uuid NOT NULL,
    user_id       uuid NOT NULL,
    agent         text NOT NULL,
    status        text NOT NULL
        CHECK (status IN ('queued', 'running', 'completed', 'failed', 'cancelled', 'interrupted')),
    created_at    timestamptz NOT NULL DEFAULT now(),
    started_at    timestamptz,
    ended_at      timestamptz,
    output        text,
    error_code    text,
    error_message text,
    usage         jsonb,
    FOREIGN KEY (thread_id, user_id) REFERENCES threads (thread_id, user_id) ON DELETE CASCADE
);
CREATE INDEX runs_by_thread ON runs (thread_id);
CREATE INDEX runs_unfinished ON runs (run_id) WHERE status IN ('queued', 'running');

CREATE TABLE messages (
    message_id    uuid PRIMARY KEY,
    position      bigint GENERATED ALWAYS AS IDENTITY,   -- order within the thread, also between equal times
    thread_id     uuid NOT NULL,
    user_id       uuid NOT NULL,
    run_id        uuid NOT NULL,
    role          text NOT NULL CHECK (role IN ('user', 'assistant')),
    content       text NOT NULL,
    partial       boolean NOT NULL DEFAULT false,        -- the run ended before it had said all
    created_at    timestamptz NOT NULL DEFAULT now(),
    words         tsvector GENERATED ALWAYS AS (to_tsvector('simple', content)) STORED,
    FOREIGN KEY (thread_id, user_id) REFERENCES threads (thread_id, user_id) ON DELETE CASCADE
);
CREATE INDEX messages_by_thread ON messages (thread_id, position DESC);
-- No index on words: under row-level security a non-leakproof operator such as @@ runs after the policy,
-- so a search reads this user's rows through the index below in any case.
CREATE INDEX messages_by_user ON messages (user_id, position DESC);
CREATE INDEX messages_by_run ON messages (run_id);

-- The event log. One row holds consecutive events of one thread, one encoded envelope a line.
CREATE TABLE events (
    thread_id     uuid NOT NULL,
    first_seq     bigint NOT NULL CHECK (first_seq > 0),
    last_seq      bigint NOT NULL CHECK (last_seq >= first_seq),
    user_id       uuid NOT NULL,
    lines         text NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (thread_id, first_seq),
    FOREIGN KEY (thread_id, user_id) REFERENCES threads (thread_id, user_id) ON DELETE CASCADE
);

CREATE TABLE idempotency_keys (
    user_id       uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    key           text NOT NULL,
    fingerprint   bytea NOT NULL,             -- SHA-256 of what was asked, to tell a repeat from a reuse
    answer        jsonb NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (user_id, key)
);
CREATE INDEX idempotency_keys_by_age ON idempotency_keys (created_at);

DO $$
DECLARE
    t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['threads', 'runs', 'messages', 'events', 'idempotency_keys'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', t);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', t);
        EXECUTE format(
            'CREATE POLICY own_rows ON %I TO nurseries_request'
            ' USING (user_id = app_user_id()) WITH CHECK (user_id = app_user_id())', t);
        EXECUTE format('GRANT SELECT ON %I TO nurseries_request', t);
    END LOOP;
    FOREACH t IN ARRAY ARRAY['threads', 'runs', 'messages', 'events'] LOOP
        EXECUTE format('CREATE POLICY service ON %I TO nurseries_journal USING (true) WITH CHECK (true)', t);
    END LOOP;
END
$$;
GRANT INSERT, UPDATE, DELETE ON threads, messages, runs, idempotency_keys TO nurseries_request;

-- The journal appends what runs say and how they end; what it may read is what recovery needs, no text.
GRANT INSERT ON events, messages TO nurseries_journal;
GRANT SELECT (thread_id, first_seq, last_seq, user_id) ON events TO nurseries_journal;
GRANT SELECT (message_id) ON messages TO nurseries_journal;  -- for ON CONFLICT
GRANT SELECT (run_id, thread_id, user_id, agent, status, created_at, started_at) ON runs TO nurseries_journal;
GRANT UPDATE (status, started_at, ended_at, output, error_code, error_message, usage) ON runs TO nurseries_journal;
-- The account service removes keys that are too old to be repeated.
CREATE POLICY janitor ON idempotency_keys TO nurseries_accounts USING (true);
GRANT SELECT (user_id, key, created_at), DELETE ON idempotency_keys TO nurseries_accounts;
