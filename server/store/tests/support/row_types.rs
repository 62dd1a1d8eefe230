//! Row types, and blocks that announce them.
#![allow(dead_code, clippy::unwrap_used, reason = "each test uses a part of it, and it is tests only")]

use prost::Message as _;
use tidegate_model::{Block, BlockBuilder, Entry, Kind, Lsn, Op, TableName};
use tidegate_proto::v1;
use tidegate_schema::{ColumnSpec, RowTypeSpec, ScalarKind, ValueKind};

/// `public.orders` with columns of these names, the first of them the key.
pub(crate) fn row_type(row_type: u32, columns: &[&str]) -> v1::RowType {
    let column = |(n, name): (usize, &&str)| ColumnSpec {
        name: (*name).to_owned(),
        attnum: n as i32 + 1,
        type_oid: 25,
        type_name: "text".to_owned(),
        codec: ValueKind::Scalar(ScalarKind::Text),
        key: n == 0,
        field: n as u32 + 1,
    };
    let columns = columns.iter().enumerate().map(column).collect();
    let (source, name) = ("shop".parse().unwrap(), TableName::new("public", "orders"));
    RowTypeSpec { row_type, source, name, table_oid: 16_385, identity: v1::ReplicaIdentity::Key, columns }.to_proto()
}

/// A block that announces it, with a progress at `at`.
pub(crate) fn announcement(at: u64, row_type: &v1::RowType) -> Block {
    let mut builder = BlockBuilder::default();
    let entry = |kind| Entry {
        lsn: Lsn(at),
        ordinal: 0,
        row_type: row_type.row_type,
        start: 0,
        end: 0,
        kind,
        op: Op::None,
        continues: false,
    };
    builder.push(entry(Kind::RowType), &row_type.encode_to_vec());
    builder.push(entry(Kind::Progress), b"");
    builder.finish()
}
