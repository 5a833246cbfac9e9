-- Tokens that users stored for the servers of their tools, encrypted with a key that only the owner of the
-- database can read. The server's process decrypts one for a request of its user.
CREATE TABLE tool_credentials (
    user_id       uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    server        text NOT NULL,
    sealed        bytea NOT NULL CHECK (octet_length(sealed) <= 8192),
    created_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (user_id, server)
);
ALTER TABLE tool_credentials ENABLE ROW LEVEL SECURITY;
ALTER TABLE tool_credentials FORCE ROW LEVEL SECURITY;
CREATE POLICY own_rows ON tool_credentials TO nurseries_request
    USING (user_id = app_user_id()) WITH CHECK (user_id = app_user_id());
GRANT SELECT, INSERT, UPDATE, DELETE ON tool_credentials TO nurseries_request;
