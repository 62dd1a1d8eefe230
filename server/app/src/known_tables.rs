//! Keeps the gateway informed of the tables and columns that a source has, so that a mistyped name is refused at once,
//! even where the table has not been seen in the stream yet.
//!
//! It deliberately decides nothing about capture, and a database that does not answer leaves what is known as it is.

use std::{sync::Arc, time::Duration};
use tidegate_gateway::KnownTable;
use tidegate_model::{TableName, TablePatterns};
use tidegate_postgres::{ConnectConfig, Session};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How long a new table may be unknown.
const INTERVAL: Duration = Duration::from_secs(5);

/// Tables with their columns, system schemas aside; partitions under the name that their changes are published under, the root's
/// or their own; the root's where there is no publication yet, since the one that is made then has it so. One query, whatever the
/// number of tables.
const TABLES: &str = "
    SELECT n.nspname::text, c.relname::text,
           coalesce(array_agg(a.attname::text ORDER BY a.attnum) FILTER (WHERE a.attname IS NOT NULL), '{}'),
           bool_or(p.oid IS NULL OR t.relid IS NOT NULL)
    FROM pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    LEFT JOIN pg_publication p ON p.pubname = $1
    LEFT JOIN (SELECT DISTINCT t.relid FROM pg_publication p, pg_get_publication_tables(p.pubname::text) t
               WHERE p.pubname = $1) t ON t.relid = c.oid
    WHERE c.relkind IN ('r', 'p') AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
      AND NOT CASE WHEN coalesce(p.pubviaroot, true) THEN c.relispartition ELSE c.relkind = 'p' END
    GROUP BY n.nspname, c.relname";

/// Reads the catalog again and again until `stop`.
pub(crate) async fn watch(
    (connect, publication): (ConnectConfig, String),
    patterns: TablePatterns,
    known: watch::Sender<Arc<Vec<KnownTable>>>,
    stop: CancellationToken,
) {
    let mut session = None;
    while !stop.is_cancelled() {
        let read = tokio::select! {
            read = read(&mut session, &connect, &publication) => read,
            () = stop.cancelled() => return,
        };
        match read {
            Ok(mut tables) => {
                tables.retain(|table| patterns.matches(&table.name));
                let changed = |old: &mut Arc<Vec<KnownTable>>| {
                    let differs = **old != tables;
                    if differs {
                        *old = Arc::new(tables);
                    }
                    differs
                };
                known.send_if_modified(changed);
            }
            // Capture meets the same outage, and says so.
            Err(error) => {
                tracing::debug!(error = format!("{error:#}"), "the source's tables cannot be read");
                session = None;
            }
        }
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            () = stop.cancelled() => {}
        }
    }
}

async fn read(
    session: &mut Option<Session>,
    connect: &ConnectConfig,
    publication: &str,
) -> anyhow::Result<Vec<KnownTable>> {
    let session = match session {
        Some(session) => session,
        None => session.insert(Session::connect(connect).await?),
    };
    let rows = session.client().query(TABLES, &[&publication]).await?;
    let mut tables: Vec<KnownTable> = rows
        .iter()
        .map(|row| KnownTable {
            name: TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)),
            columns: row.get(2),
            published: row.get(3),
        })
        .collect();
    tables.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(tables)
}
