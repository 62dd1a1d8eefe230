-- A column that is renamed keeps its number: a number may have several names, and a name, one after the other, several numbers.
ALTER TABLE tidegate.field
    DROP CONSTRAINT field_pkey,
    DROP CONSTRAINT field_source_schema_name_table_name_field_key,
    -- Of several numbers that a name with a type has had, the one with the highest is the newest.
    ADD COLUMN naming bigint NOT NULL GENERATED ALWAYS AS IDENTITY,
    ADD PRIMARY KEY (source, schema_name, table_name, column_name, type_key, field);
