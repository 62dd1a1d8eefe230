//! A change as a person reads it: rows as `Any`, columns by name, parts put together, large values left out and named.
//!
//! Invariant: the memory that it takes is bounded, however large the row: a value that no longer fits is passed over as
//! it arrives.

use std::{collections::BTreeSet, sync::Arc};

use bytes::{Bytes, BytesMut};
use prost::Message as _;
use prost_types::Any;
use tidegate_proto::v1;
use tidegate_schema::{FieldSet, RowType, event_body};

use crate::projection::{MalformedChange, RowProjector};

/// Values in a response, in bytes; with names and framing it stays under about 1 MiB.
const VALUE_BYTES_MAX: usize = (1 << 20) - (64 << 10);

/// A change that is being put together.
pub(crate) struct ReadableChange {
    /// None for a logical message.
    row_type: Option<Arc<RowType>>,
    keys: FieldSet,
    keyless: bool,
    /// What the first part says besides the rows.
    first: Option<v1::Change>,
    row: Side,
    old: Side,
    message: BytesMut,
    unchanged: BTreeSet<u32>,
    omitted: BTreeSet<u32>,
    message_omitted: bool,
    value_bytes: usize,
}

/// One of the two rows.
#[derive(Default)]
struct Side {
    projector: RowProjector,
    kept: BytesMut,
}

impl ReadableChange {
    pub(crate) fn new(row_type: Option<Arc<RowType>>) -> Self {
        let columns = row_type.as_ref().map_or(&[][..], |row_type| &row_type.proto().columns);
        let keys = || columns.iter().filter(|column| column.key).map(|column| column.field);
        ReadableChange {
            keys: keys().collect(),
            keyless: keys().next().is_none(),
            row_type,
            first: None,
            row: Side::default(),
            old: Side::default(),
            message: BytesMut::new(),
            unchanged: BTreeSet::new(),
            omitted: BTreeSet::new(),
            message_omitted: false,
            value_bytes: 0,
        }
    }

    /// Adds a part, a whole `events` field of a ChangeBatch; only these fields, where some are selected.
    pub(crate) fn push(&mut self, part: Bytes, fields: Option<&FieldSet>) -> Result<(), MalformedChange> {
        let mut change = v1::Change::decode(part.slice_ref(event_body(&part)?)).map_err(|_| MalformedChange)?;
        let selected = |field: u32| fields.is_none_or(|fields| fields.contains(field));
        let (value_bytes, omitted, keys) = (&mut self.value_bytes, &mut self.omitted, &self.keys);
        let mut keep = |field: u32, len: usize| {
            if !selected(field) {
                return false;
            }
            // A key's value stands in the response twice, as key and in the row.
            let cost = if keys.contains(field) { len.saturating_mul(2) } else { len };
            let fits = value_bytes.saturating_add(cost) <= VALUE_BYTES_MAX;
            if fits {
                *value_bytes += cost;
            } else {
                omitted.insert(field);
            }
            fits
        };
        self.row.projector.push(&change.row, &mut keep, &mut self.row.kept)?;
        self.old.projector.push(&change.old, &mut keep, &mut self.old.kept)?;
        self.unchanged.extend(change.unchanged.drain(..).filter(|field| selected(*field)));
        if let Some(message) = &change.message {
            if self.message.len() + message.content.len() <= VALUE_BYTES_MAX {
                self.message.extend_from_slice(&message.content);
            } else {
                self.message_omitted = true;
            }
        }
        (change.row, change.old) = (Bytes::new(), Bytes::new());
        match &mut self.first {
            Some(first) => first.old_kind = first.old_kind.max(change.old_kind),
            None => self.first = Some(change),
        }
        Ok(())
    }

    /// The response, without position and transaction.
    pub(crate) fn finish(self) -> Result<v1::WatchResponse, MalformedChange> {
        let first = self.first.as_ref().ok_or(MalformedChange)?;
        if !self.row.projector.complete() || !self.old.projector.complete() {
            return Err(MalformedChange);
        }
        let op = v1::change::Op::try_from(first.op).unwrap_or_default();
        let mut response = v1::WatchResponse { op: op as i32, r#move: first.r#move, ..v1::WatchResponse::default() };
        if let Some(message) = &first.message {
            response.message = Some(v1::LogicalMessage { content: self.message.clone().freeze(), ..message.clone() });
            if self.message_omitted {
                response.omitted.push("content".to_owned());
            }
        }
        let Some(row_type) = &self.row_type else { return Ok(response) };
        let has_row = matches!(op, v1::change::Op::Insert | v1::change::Op::Update | v1::change::Op::Read);
        let has_old = first.old_kind != v1::change::OldKind::None as i32;
        let any = |row: &[u8]| Any {
            type_url: format!("type.googleapis.com/{}", row_type.proto().message),
            value: row.to_vec(),
        };
        response.table = row_type.name().to_string();
        if has_row || has_old {
            response.key = self.key(if has_row { &self.row } else { &self.old })?.map(|key| any(&key));
        }
        response.row = has_row.then(|| any(&self.row.kept));
        response.old = has_old.then(|| any(&self.old.kept));
        response.unchanged = names(row_type, &self.unchanged);
        response.omitted = names(row_type, &self.omitted);
        Ok(response)
    }

    /// The row's key; None for a table without one.
    fn key(&self, side: &Side) -> Result<Option<BytesMut>, MalformedChange> {
        if self.keyless {
            return Ok(None);
        }
        let mut key = BytesMut::new();
        RowProjector::default().push(&side.kept, |field, _| self.keys.contains(field), &mut key)?;
        Ok(Some(key))
    }
}

/// The fields' column names, in column order.
fn names(row_type: &RowType, fields: &BTreeSet<u32>) -> Vec<String> {
    let columns = row_type.proto().columns.iter();
    columns.filter(|column| fields.contains(&column.field)).map(|column| column.name.clone()).collect()
}
