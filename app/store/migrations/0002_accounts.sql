CREATE TABLE users (
    user_id       uuid PRIMARY KEY,
    email         text NOT NULL,
    email_key     text NOT NULL UNIQUE,       -- case-folded: what makes two addresses the same account
    password_hash text NOT NULL,
    roles         text[] NOT NULL DEFAULT '{}',
    disabled_at   timestamptz,
    created_at    timestamptz NOT NULL DEFAULT now()
);

-- One login. Its refresh tokens are one family, and all its tokens die with it.
CREATE TABLE sessions (
    session_id    uuid PRIMARY KEY,
    user_id       uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    created_at    timestamptz NOT NULL DEFAULT now(),
    expires_at    timestamptz NOT NULL,
    revoked_at    timestamptz,
    revoked_for   text
);
CREATE INDEX sessions_by_user ON sessions (user_id);
CREATE INDEX sessions_by_expiry ON sessions (expires_at);

-- Secrets are stored as SHA-256: 256 random bits need no slow hash.
CREATE TABLE refresh_tokens (
    token_hash    bytea PRIMARY KEY,
    session_id    uuid NOT NULL REFERENCES sessions ON DELETE CASCADE,
    user_id       uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    created_at    timestamptz NOT NULL DEFAULT now(),
    expires_at    timestamptz NOT NULL,
    used_at       timestamptz
);
CREATE INDEX refresh_tokens_by_session ON refresh_tokens (session_id);

CREATE TABLE tickets (
    ticket_hash   bytea PRIMARY KEY,
    session_id    uuid NOT NULL REFERENCES sessions ON DELETE CASCADE,
    user_id       uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    expires_at    timestamptz NOT NULL,
    used_at       timestamptz
);
CREATE INDEX tickets_by_expiry ON tickets (expires_at);

DO $$
DECLARE
    t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['users', 'sessions', 'refresh_tokens', 'tickets'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', t);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', t);
        EXECUTE format('CREATE POLICY own_rows ON %I TO nurseries_request USING (user_id = app_user_id())', t);
        EXECUTE format('CREATE POLICY service ON %I TO nurseries_accounts USING (true) WITH CHECK (true)', t);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO nurseries_accounts', t);
    END LOOP;
END
$$;

-- A request may see that its user exists, and no secret: the columns are listed on purpose.
GRANT SELECT (user_id, email, roles, disabled_at, created_at) ON users TO nurseries_request;
GRANT SELECT (session_id, user_id, created_at, expires_at, revoked_at) ON sessions TO nurseries_request;
GRANT SELECT (session_id, user_id, expires_at, used_at) ON refresh_tokens, tickets TO nurseries_request;
