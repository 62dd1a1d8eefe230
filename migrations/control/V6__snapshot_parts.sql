-- Snapshots that were asked for by themselves, and not by a subscription: whoever wants such snapshots receives them.
ALTER TABLE tidegate.snapshot ADD COLUMN ad_hoc boolean NOT NULL DEFAULT false;

-- Tables of which a snapshot reads a part.
CREATE TABLE tidegate.snapshot_part (
    source      text NOT NULL,
    snapshot    integer NOT NULL,
    schema_name text NOT NULL,
    table_name  text NOT NULL,
    -- SQL, as it was printed from what was asked for.
    condition   text,
    -- Columns of the key, and the values of all keys, one after the other. Deleted when the snapshot ends.
    key_width   integer CHECK (key_width > 0),
    key_values  text[],
    PRIMARY KEY (source, snapshot, schema_name, table_name),
    FOREIGN KEY (source, snapshot) REFERENCES tidegate.snapshot (source, snapshot) ON DELETE CASCADE,
    CHECK ((condition IS NULL) <> (key_values IS NULL) AND (key_width IS NULL) = (key_values IS NULL))
);
