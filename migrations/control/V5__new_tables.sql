-- A snapshot of tables that have joined the publication: every subscription that selects one of them receives it.
ALTER TABLE tidegate.snapshot ADD COLUMN new_tables boolean NOT NULL DEFAULT false;
