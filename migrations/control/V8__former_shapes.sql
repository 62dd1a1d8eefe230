-- What named shapes were before they were defined anew: who goes on from then is told the difference.

CREATE TABLE tidegate.former_shape (
    source           text NOT NULL,
    name             text NOT NULL,
    version          bigint NOT NULL,
    schema_name      text NOT NULL,
    table_name       text NOT NULL,
    condition        text NOT NULL,
    parameter_types  text[] NOT NULL,
    columns          text[] NOT NULL,
    updates          text NOT NULL,
    defined_at       timestamptz NOT NULL,
    PRIMARY KEY (source, name, version),
    FOREIGN KEY (source, name) REFERENCES tidegate.shape (source, name) ON DELETE CASCADE
);
