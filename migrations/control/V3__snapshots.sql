-- What snapshots are to do. How far one got stands in the changelog, with its chunks.

-- Highest number given to a snapshot. Numbers are never used again.
ALTER TABLE tidegate.source ADD COLUMN last_snapshot integer NOT NULL DEFAULT 0;

CREATE TABLE tidegate.snapshot (
    source      text NOT NULL REFERENCES tidegate.source (name) ON DELETE CASCADE,
    snapshot    integer NOT NULL CHECK (snapshot > 0),
    -- The epoch whose changelog it goes to, as hexadecimal digits: it ends with it.
    epoch       text NOT NULL,
    -- Names of schema and table, by turns.
    tables      text[] NOT NULL,
    state       text NOT NULL CHECK (state IN ('running', 'paused', 'done', 'cancelled', 'failed')),
    -- Why, where it failed.
    detail      text NOT NULL DEFAULT '',
    created_at  timestamptz NOT NULL DEFAULT now(),
    ended_at    timestamptz,
    PRIMARY KEY (source, snapshot)
);

CREATE INDEX snapshot_unfinished ON tidegate.snapshot (source) WHERE ended_at IS NULL;
