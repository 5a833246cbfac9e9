-- Three group roles, none of which owns a table or bypasses row-level security. They are shared by every
-- nurseries database of a cluster; the server logs in through members of its own (app/store/roles.py).
--
--   nurseries_request   what a user's request may do: its own rows, and no credential
--   nurseries_accounts  the account service: credentials and sessions, and no conversation
--   nurseries_journal   the event log writer: appends events, ends runs, reads no event and no message text
DO $$
DECLARE
    role_name text;
BEGIN
    FOREACH role_name IN ARRAY ARRAY['nurseries_request', 'nurseries_accounts', 'nurseries_journal'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role_name) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN NOSUPERUSER NOBYPASSRLS', role_name);
            EXCEPTION WHEN duplicate_object OR unique_violation THEN
                NULL;  -- another database of this cluster was migrated at the same moment
            END;
        END IF;
    END LOOP;
END
$$;

REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO nurseries_request, nurseries_accounts, nurseries_journal;

-- The user that a transaction acts for. An unset setting reads as '' once it has been set in the
-- connection's life, hence NULLIF; NULL equals no row.
CREATE FUNCTION app_user_id() RETURNS uuid
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN NULLIF(current_setting('app.user_id', true), '')::uuid;

-- What the server itself must remember between starts, such as the key that signs tokens. Owner only.
CREATE TABLE secrets (
    name       text PRIMARY KEY,
    value      bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
