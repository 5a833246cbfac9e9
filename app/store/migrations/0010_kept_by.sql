-- Operations inside a run have checkpoints of their own. `kept_by` is the run id that the events carry: the run's own,
-- or that of the operation.
ALTER TABLE checkpoints ADD COLUMN kept_by text;
UPDATE checkpoints SET kept_by = run_id::text;
ALTER TABLE checkpoints DROP CONSTRAINT checkpoints_pkey, ADD PRIMARY KEY (kept_by);
CREATE INDEX checkpoints_by_run ON checkpoints (run_id);
GRANT SELECT (kept_by) ON checkpoints TO nurseries_journal;
