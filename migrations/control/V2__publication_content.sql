-- What the publication promised to send when it was last captured through: its options and members, as lines of text. A line
-- that is gone means that changes may have been missed. NULL until the first connection that writes it.
ALTER TABLE tidegate.source ADD COLUMN publication_content text;
