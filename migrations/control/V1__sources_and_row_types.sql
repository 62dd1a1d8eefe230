-- What must outlive a node: which publication a source was captured through, and the numbers that row messages use.
-- The schema `tidegate` is created before the first migration, because the history of migrations is kept in it.

CREATE TABLE tidegate.source (
    name             text PRIMARY KEY,
    -- pg_publication.oid of the publication captured through; another one means that changes may have been missed.
    publication_oid  oid,
    -- Highest number given to a row type. Numbers are never used again.
    last_row_type    integer NOT NULL DEFAULT 0,
    created_at       timestamptz NOT NULL DEFAULT now()
);

-- A field number of a table's row message. Allocated once per column name and type, across incarnations of the table.
CREATE TABLE tidegate.field (
    source       text NOT NULL REFERENCES tidegate.source (name) ON DELETE CASCADE,
    schema_name  text NOT NULL,
    table_name   text NOT NULL,
    column_name  text NOT NULL,
    -- The type's name and how its values are encoded.
    type_key     text NOT NULL,
    field        integer NOT NULL CHECK (field > 0),
    PRIMARY KEY (source, schema_name, table_name, column_name, type_key),
    UNIQUE (source, schema_name, table_name, field)
);

-- A row type: one way in which a table's rows are encoded.
CREATE TABLE tidegate.row_type (
    source       text NOT NULL REFERENCES tidegate.source (name) ON DELETE CASCADE,
    row_type     integer NOT NULL CHECK (row_type > 0),
    schema_name  text NOT NULL,
    table_name   text NOT NULL,
    -- Everything that tells it from the table's other row types.
    fingerprint  text NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (source, row_type)
);

CREATE UNIQUE INDEX row_type_fingerprint
    ON tidegate.row_type (source, schema_name, table_name, md5(fingerprint));
