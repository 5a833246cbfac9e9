-- What a run must be told again when it goes on in another server than the one that accepted it.
ALTER TABLE runs
    ADD COLUMN client_id     text,
    ADD COLUMN on_conflict   text NOT NULL DEFAULT 'enqueue',
    ADD COLUMN on_disconnect text NOT NULL DEFAULT 'continue',
    ADD COLUMN replaces      uuid,                        -- the run that was active when this one was to go before it
    ADD COLUMN since_seq     bigint NOT NULL DEFAULT 0,   -- a number of the thread before the run's first event
    ADD COLUMN resumes       integer NOT NULL DEFAULT 0;  -- how often it has gone on after its server was lost
GRANT SELECT (on_conflict, on_disconnect, replaces, since_seq, resumes) ON runs TO nurseries_journal;
GRANT UPDATE (since_seq, resumes) ON runs TO nurseries_journal;

-- How far a run has got, until it ends: the newest state alone. What its calls came to is in the event log.
CREATE TABLE checkpoints (
    run_id        uuid PRIMARY KEY REFERENCES runs ON DELETE CASCADE,
    thread_id     uuid NOT NULL,
    user_id       uuid NOT NULL,
    step          integer NOT NULL CHECK (step > 0),
    output        text NOT NULL,
    state         bytea NOT NULL,
    models        jsonb NOT NULL,             -- what the models have cost so far, by name
    created_at    timestamptz NOT NULL DEFAULT now(),
    FOREIGN KEY (thread_id, user_id) REFERENCES threads (thread_id, user_id) ON DELETE CASCADE
);
CREATE INDEX checkpoints_by_thread ON checkpoints (thread_id);

-- Calls that a person was asked about. `asked_by` is the run id that the events carry: the run's own, or that
-- of an operation inside it.
CREATE TABLE approvals (
    asked_by      text NOT NULL,
    call_id       text NOT NULL,
    run_id        uuid NOT NULL REFERENCES runs ON DELETE CASCADE,
    thread_id     uuid NOT NULL,
    user_id       uuid NOT NULL,
    tool          text NOT NULL,
    arguments     jsonb NOT NULL,
    requested_at  timestamptz NOT NULL DEFAULT now(),
    expires_at    timestamptz NOT NULL,
    decision      text CHECK (decision IN ('approve', 'deny', 'expired', 'void')),   -- void: its run has ended
    note          text,
    decided_at    timestamptz,
    PRIMARY KEY (asked_by, call_id),
    FOREIGN KEY (thread_id, user_id) REFERENCES threads (thread_id, user_id) ON DELETE CASCADE
);
CREATE INDEX approvals_by_run ON approvals (run_id);
CREATE INDEX approvals_by_thread ON approvals (thread_id);

DO $$
DECLARE
    t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['checkpoints', 'approvals'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', t);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', t);
        EXECUTE format('CREATE POLICY own_rows ON %I TO nurseries_request USING (user_id = app_user_id())', t);
        EXECUTE format('CREATE POLICY service ON %I TO nurseries_journal USING (true) WITH CHECK (true)', t);
        EXECUTE format('GRANT SELECT ON %I TO nurseries_request', t);
    END LOOP;
END
$$;

-- A request reads its own and writes neither: what it has got to, and what a person has allowed, is not for an
-- agent or a tool to say. The journal writes both, and reads no text of them.
GRANT INSERT, DELETE ON checkpoints TO nurseries_journal;
GRANT SELECT (run_id) ON checkpoints TO nurseries_journal;
GRANT INSERT ON approvals TO nurseries_journal;
GRANT SELECT (asked_by, call_id, run_id, decision) ON approvals TO nurseries_journal;
GRANT UPDATE (decision, note, decided_at) ON approvals TO nurseries_journal;
