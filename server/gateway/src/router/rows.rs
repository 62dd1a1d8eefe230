//! Takes the rows out of a change, and asks the index about them.

use std::borrow::Cow;

use tidegate_model::{Block, Entry, Op};
use tidegate_proto::v1::change::OldKind;
use tidegate_schema::{
    event_body,
    wire::{Fields, WireError, read_varint},
};
use tidegate_views::{Effect, Effort, Room, Routed};

use super::tables::{Member, Sorted};

/// `Change.row`, `Change.old`, `Change.old_kind` and `Change.unchanged`.
const ROW: u32 = 4;
const OLD: u32 = 5;
const OLD_KIND: u32 = 6;
const UNCHANGED: u32 = 7;

/// Room for the work, kept from row to row.
#[derive(Default)]
pub(super) struct Rows {
    room: Room,
    routed: Vec<Routed<Member>>,
}

/// What a change says of its rows.
#[derive(Default)]
struct Said<'a> {
    old: Cow<'a, [u8]>,
    row: Cow<'a, [u8]>,
    old_is_full: bool,
    /// Fields that the row has and that were not sent.
    unchanged: Vec<u32>,
}

impl Rows {
    /// What all changes have cost.
    pub(super) fn effort(&self) -> Effort {
        self.room.effort()
    }

    /// Whom a change concerns, appended to `concerned`, and what it is to them where that is known. `parts`: all of it. None, and
    /// nothing appended, where it does not say all of its rows.
    pub(super) fn judged(
        &mut self,
        block: &Block,
        (op, parts): (Op, &[Entry]),
        sorted: &Sorted,
        concerned: &mut Vec<(Member, Option<Effect>)>,
    ) -> Option<()> {
        let Rows { room, routed } = self;
        let mut said = Said::default();
        for part in parts {
            said.add(&block.payload()[part.start as usize..part.end as usize]).ok()?;
        }
        let (old, new) = match op {
            Op::Insert | Op::Read if said.unchanged.is_empty() => (None, Some(&*said.row)),
            Op::Update if said.old_is_full => {
                said.complete()?;
                (Some(&*said.old), Some(&*said.row))
            }
            Op::Delete if said.old_is_full => (Some(&*said.old), None),
            Op::Insert | Op::Read | Op::Update | Op::Delete | Op::Truncate | Op::Message | Op::None => return None,
        };
        routed.clear();
        sorted.index.route(old, new, room, routed).ok()?;
        // Whoever is failed by a row is told by his own evaluation.
        concerned.extend(routed.drain(..).map(|routed| (routed.id, routed.effect.ok())));
        concerned.extend(sorted.unjudged.iter().map(|member| (*member, None)));
        Some(())
    }
}

impl<'a> Said<'a> {
    /// Takes the change, or another part of it.
    fn add(&mut self, event: &'a [u8]) -> Result<(), WireError> {
        for field in Fields::new(event_body(event)?) {
            let field = field?;
            match field.number {
                ROW => append(&mut self.row, field.value),
                OLD => append(&mut self.old, field.value),
                OLD_KIND => self.old_is_full = read_varint(field.value)?.0 == OldKind::Full as u64,
                UNCHANGED => read_numbers(field.value, &mut self.unchanged)?,
                _other => {}
            }
        }
        Ok(())
    }

    /// Takes from the old row what was left as it was; None where that does not have it either.
    fn complete(&mut self) -> Option<()> {
        if self.unchanged.is_empty() {
            return Some(());
        }
        let mut missing = self.unchanged.len();
        for field in Fields::new(&self.old) {
            let field = field.ok()?;
            if self.unchanged.contains(&field.number) {
                self.row.to_mut().extend_from_slice(field.whole);
                missing -= 1;
            }
        }
        (missing == 0).then_some(())
    }
}

fn append<'a>(to: &mut Cow<'a, [u8]>, more: &'a [u8]) {
    if to.is_empty() {
        *to = Cow::Borrowed(more);
    } else {
        to.to_mut().extend_from_slice(more);
    }
}

/// A repeated field's numbers, packed or not.
fn read_numbers(mut bytes: &[u8], numbers: &mut Vec<u32>) -> Result<(), WireError> {
    while !bytes.is_empty() {
        let (number, len) = read_varint(bytes)?;
        numbers.push(u32::try_from(number).unwrap_or(u32::MAX));
        bytes = &bytes[len..];
    }
    Ok(())
}
