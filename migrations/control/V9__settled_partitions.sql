-- On PostgreSQL 14: behind this position of the epoch, rows of partitions are sent as what they are now. A connection never begins before
-- it, even where the slot has fallen back in a crash. NULL before the first such position.
ALTER TABLE tidegate.source ADD COLUMN partitions_epoch text, ADD COLUMN partitions_lsn pg_lsn;
