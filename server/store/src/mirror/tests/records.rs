//! Records of a log as capture writes them.

use tidegate_model::{BlockBuilder, Entry, Kind, Op, Position};
use tidegate_schema::{ChangeParts, Extra, OldKind, push_change, set_ordinal};

/// A record: its entry, whose range is to be set, and its bytes.
pub(crate) type Record = (Entry, Vec<u8>);

/// A change.
#[derive(Clone)]
pub(crate) struct Parts {
    pub(crate) op: Op,
    pub(crate) row_type: u32,
    pub(crate) row: Vec<u8>,
    pub(crate) old: Vec<u8>,
    pub(crate) old_kind: OldKind,
    pub(crate) unchanged: Vec<u32>,
}

impl Parts {
    pub(crate) fn of(op: Op, row_type: u32) -> Self {
        Parts { op, row_type, row: Vec::new(), old: Vec::new(), old_kind: OldKind::None, unchanged: Vec::new() }
    }

    pub(crate) fn records(&self, at: Position) -> Vec<Record> {
        let change = ChangeParts {
            op: self.op,
            row_type: self.row_type,
            row: &self.row,
            old: &self.old,
            old_kind: self.old_kind,
            unchanged: &self.unchanged,
            extra: Extra::None,
        };
        let mut builder = BlockBuilder::default();
        push_change(&change, at.lsn, &mut builder);
        for entry in &mut builder.entries {
            entry.ordinal = at.ordinal;
            set_ordinal(&mut builder.payload, entry, at.ordinal);
        }
        let bytes = |entry: &Entry| builder.payload[entry.start as usize..entry.end as usize].to_vec();
        builder.entries.iter().map(|entry| (Entry { start: 0, end: 0, ..*entry }, bytes(entry))).collect()
    }
}

pub(crate) fn entry(at: Position, kind: Kind, op: Op, row_type: u32) -> Entry {
    Entry { lsn: at.lsn, ordinal: at.ordinal, row_type, start: 0, end: 0, kind, op, continues: false }
}
