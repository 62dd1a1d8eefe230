-- Named shapes. Each node keeps a copy, and asks only whether they are still the same.

-- Grows with each definition and deletion of one of the source's shapes.
ALTER TABLE tidegate.source ADD COLUMN shapes_version bigint NOT NULL DEFAULT 0;

CREATE TABLE tidegate.shape (
    source           text NOT NULL REFERENCES tidegate.source (name) ON DELETE CASCADE,
    name             text NOT NULL,
    -- The source's shapes_version with which it came to be as it is.
    version          bigint NOT NULL,
    schema_name      text NOT NULL,
    table_name       text NOT NULL,
    -- As it was written; empty for all rows.
    condition        text NOT NULL,
    -- Of $1, $2 and so on; empty where the place tells the type. Subscribers give the values.
    parameter_types  text[] NOT NULL,
    -- Besides the key; empty for all.
    columns          text[] NOT NULL,
    updates          text NOT NULL CHECK (updates IN ('full_row', 'changed_columns')),
    defined_at       timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (source, name)
);
