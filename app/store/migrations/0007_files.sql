-- Files that users uploaded for their analyst. The contents are in pieces, so that no statement has to hold one whole.
CREATE TABLE files (
    file_id       uuid PRIMARY KEY,
    user_id       uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    name          text NOT NULL,
    table_name    text NOT NULL,              -- what it is called in SQL
    kind          text NOT NULL CHECK (kind IN ('csv', 'parquet')),
    bytes         bigint NOT NULL CHECK (bytes >= 0),
    row_count     bigint NOT NULL CHECK (row_count >= 0),
    columns       jsonb NOT NULL,             -- [{name, type}] in their order
    created_at    timestamptz NOT NULL DEFAULT now(),
    UNIQUE (user_id, table_name),
    UNIQUE (file_id, user_id)                 -- so that what belongs to a file belongs to its user, below
);

CREATE TABLE file_pieces (
    file_id       uuid NOT NULL,
    number        integer NOT NULL CHECK (number >= 0),
    user_id       uuid NOT NULL,
    data          bytea NOT NULL,
    PRIMARY KEY (file_id, number),
    FOREIGN KEY (file_id, user_id) REFERENCES files (file_id, user_id) ON DELETE CASCADE
);
ALTER TABLE file_pieces ALTER COLUMN data SET STORAGE EXTERNAL;  -- what users upload is often compressed already

DO $$
DECLARE
    t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['files', 'file_pieces'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', t);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', t);
        EXECUTE format(
            'CREATE POLICY own_rows ON %I TO nurseries_request'
            ' USING (user_id = app_user_id()) WITH CHECK (user_id = app_user_id())', t);
        EXECUTE format('GRANT SELECT, INSERT, DELETE ON %I TO nurseries_request', t);
    END LOOP;
END
$$;
