//! Chunks of every kind of key and table, and what a snapshot must not overlook.

mod definitions;
mod keys;
mod rows;
mod visibility;

use tidegate_model::TableName;
use tidegate_postgres::{
    Session,
    snapshot::{
        Chunk, ChunkFacts, ChunkReader, Range, ReadLimits, SharedSnapshot, SnapshotReadError, TablePlan, table_plan,
    },
};

use crate::launcher::Server;

/// A row's values; None is NULL.
type Row = Vec<Option<String>>;

fn name(table: &str) -> TableName {
    TableName::new("public", table)
}

async fn plan(session: &Session, table: &str) -> TablePlan {
    table_plan(session, "pub", &name(table)).await.expect("a plan")
}

fn reader(server: &Server) -> ChunkReader {
    ChunkReader::new(server.config(), ReadLimits::default())
}

fn after(cursor: Option<tidegate_postgres::snapshot::Cursor>, row_limit: u32) -> Range {
    Range::After { cursor, row_limit }
}

async fn read(
    reader: &mut ChunkReader,
    plan: &TablePlan,
    range: &Range,
) -> Result<(Vec<Row>, ChunkFacts), SnapshotReadError> {
    read_shared(reader, plan, range, None).await
}

async fn read_shared(
    reader: &mut ChunkReader,
    plan: &TablePlan,
    range: &Range,
    shared: Option<&SharedSnapshot>,
) -> Result<(Vec<Row>, ChunkFacts), SnapshotReadError> {
    let mut rows = Vec::new();
    let text = |value: Option<&[u8]>| value.map(|value| String::from_utf8(value.to_vec()).expect("UTF-8"));
    let facts = reader
        .read(Chunk { plan, range, shared }, |row| {
            rows.push(row.values().map(text).collect());
            Ok::<_, SnapshotReadError>(())
        })
        .await?;
    assert_eq!(facts.row_count, rows.len() as u64);
    Ok((rows, facts))
}

/// Every row of a table with a key, read in chunks of this size; cursors are stored and read back on the way.
async fn read_all(reader: &mut ChunkReader, plan: &TablePlan, row_limit: u32) -> Vec<Row> {
    let (mut all, mut cursor) = (Vec::new(), None);
    loop {
        let (rows, facts) = read(reader, plan, &after(cursor, row_limit)).await.expect("a chunk");
        assert!(rows.len() <= row_limit as usize);
        all.extend(rows);
        let Some(next) = facts.next else { return all };
        cursor = Some(tidegate_postgres::snapshot::Cursor::from_bytes(&next.to_bytes()).expect("a cursor"));
    }
}

/// The last column of each row as a number, sorted.
fn numbers(rows: &[Row]) -> Vec<u32> {
    let number = |row: &Row| row.last().and_then(Option::as_deref).expect("a value").parse().expect("a number");
    let mut numbers: Vec<u32> = rows.iter().map(number).collect();
    numbers.sort_unstable();
    numbers
}
