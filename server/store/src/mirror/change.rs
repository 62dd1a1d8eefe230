//! Reads encoded changes, and joins those that are cut into several.
//!
//! Invariant: of a cut change, no more is held than its bytes; it is handed out once, with its last piece.

use bytes::Bytes;
use tidegate_model::{Block, Entry, Op, Position};
use tidegate_schema::{
    OldKind, event_body,
    wire::{Fields, WireError, read_varint},
};

use super::error::{MirrorError, Result};

/// A change of a row, in one piece.
#[derive(Clone, Debug)]
pub(crate) struct Whole {
    pub(crate) op: Op,
    pub(crate) row_type: u32,
    pub(crate) position: Position,
    pub(crate) row: Bytes,
    pub(crate) old: Bytes,
    pub(crate) old_kind: OldKind,
    pub(crate) unchanged: Vec<u32>,
}

/// The pieces so far of a change that goes on. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Joiner {
    begun: Option<Begun>,
    /// The pieces wait here; else they have left already.
    pub(crate) is_held: bool,
}

#[derive(Clone, Debug)]
struct Begun {
    first: Whole,
    row: Vec<Bytes>,
    old: Vec<Bytes>,
}

impl Joiner {
    /// Does the next piece belong to a change that has begun?
    pub(crate) fn has_begun(&self) -> bool {
        self.begun.is_some()
    }

    /// The change, once its last piece is there.
    pub(crate) fn push(&mut self, block: &Block, entry: &Entry) -> Result<Option<Whole>> {
        let piece = read(block, entry).map_err(|_| malformed(entry.position(), "Change"))?;
        if !entry.continues && self.begun.is_none() {
            return Ok(Some(piece));
        }
        let (row, old) = (piece.row.clone(), piece.old.clone());
        let begun = self.begun.get_or_insert_with(|| Begun { first: piece, row: Vec::new(), old: Vec::new() });
        begun.row.push(row);
        begun.old.push(old);
        if entry.continues {
            return Ok(None);
        }
        let whole =
            |begun: Begun| Whole { row: begun.row.concat().into(), old: begun.old.concat().into(), ..begun.first };
        Ok(self.begun.take().map(whole))
    }
}

pub(crate) fn malformed(position: Position, message: &'static str) -> MirrorError {
    MirrorError::Record { position, message }
}

/// Shares the block's memory.
fn read(block: &Block, entry: &Entry) -> std::result::Result<Whole, WireError> {
    let bytes = block.slice(entry);
    let mut whole = Whole {
        op: entry.op,
        row_type: entry.row_type,
        position: entry.position(),
        row: Bytes::new(),
        old: Bytes::new(),
        old_kind: OldKind::None,
        unchanged: Vec::new(),
    };
    for field in Fields::new(event_body(&bytes)?) {
        let field = field?;
        match field.number {
            4 => whole.row = bytes.slice_ref(field.value),
            5 => whole.old = bytes.slice_ref(field.value),
            6 => {
                whole.old_kind = match read_varint(field.value)?.0 {
                    1 => OldKind::Key,
                    2 => OldKind::Full,
                    _ => OldKind::None,
                }
            }
            7 => {
                let mut packed = field.value;
                while !packed.is_empty() {
                    let (number, len) = read_varint(packed)?;
                    whole.unchanged.push(number as u32);
                    packed = &packed[len..];
                }
            }
            _ => {}
        }
    }
    Ok(whole)
}
