//! One subquery's rows: which of its table's are selected, with their members, as its table's changes come.
//!
//! A change is judged with the subqueries within as they were before its transaction; at the transaction's end follows what moves for them.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use tidegate_model::{Block, Position};
use tidegate_store::Store;

use super::{
    Ended,
    changes::{Key, RowChange, Step, TableChanges},
    consumer::Consumer,
    gathering::Found,
    given::Sets,
    set::{Moment, Set},
};

/// What a selected row costs besides its key's bytes.
const ROW_BYTES: usize = 80;

/// What is found for it, by the transaction at whose end that holds.
pub(super) type Moves = BTreeMap<Position, Vec<Found>>;

/// A subquery and its rows.
pub(super) struct Node {
    pub(super) consumer: Consumer,
    changes: TableChanges,
    /// The transaction that has begun.
    begun: Position,
    pub(super) rows: Rows,
    room: Vec<u8>,
}

/// Those that are selected.
#[derive(Default)]
pub(super) struct Rows {
    /// With what each brings.
    rows: HashMap<Key, Option<Arc<[u8]>>>,
    key_bytes: usize,
}

/// What happens to it, in order.
pub(super) enum Effect {
    /// The row is selected, and brings this.
    In(Key, Option<Box<[u8]>>),
    Out(Key),
    Emptied,
    End(Position),
}

impl Node {
    pub(super) fn new(consumer: Consumer) -> Self {
        Node {
            changes: TableChanges::of(consumer.table()),
            consumer,
            begun: Position::ZERO,
            rows: Rows::default(),
            room: Vec::new(),
        }
    }

    /// What blocks do to it, from behind a position on. `moves`: what moves for the subqueries within.
    pub(super) fn effects(
        &mut self,
        (blocks, behind): (&[Block], Position),
        mut moves: Moves,
        (sets, store): (&Sets, &Store),
    ) -> Result<Vec<Effect>, Ended> {
        let mut effects = Vec::new();
        let Node { consumer, changes, begun, room, .. } = self;
        for block in blocks {
            changes.each((block, behind, MAX), store, |step| {
                match step {
                    Step::Begin(position) => *begun = position,
                    Step::End(position) => {
                        effects.extend(moves.remove(&position).into_iter().flatten().map(Effect::of));
                        effects.push(Effect::End(position));
                    }
                    Step::Change(RowChange::Truncate) => effects.push(Effect::Emptied),
                    Step::Change(RowChange::Row { row_type, old, new }) => {
                        effects.extend(old.map(|(key, _)| Effect::Out(key)));
                        let Some(new) = new else { return Ok(()) };
                        let bound = consumer.bound(row_type, store)?;
                        if let Some(field) = new.missing.first() {
                            let column = row_type.column_by_field(*field).map(|column| column.name.clone());
                            return Err(Ended::unknown(consumer.table(), &column.unwrap_or_default()));
                        }
                        let is_in = bound.is_selected(&new.row, sets, Moment::before(*begun))?;
                        effects.push(if is_in {
                            Effect::In(new.key, bound.member(&new.row, room, *begun)?)
                        } else {
                            Effect::Out(new.key)
                        });
                    }
                }
                Ok::<_, Ended>(())
            })?;
        }
        Ok(effects)
    }
}

impl Rows {
    /// Has it happen, to the rows and to the set.
    pub(super) fn apply(&mut self, effect: Effect, set: &mut Set) {
        match effect {
            Effect::In(key, member) => {
                let member = set.add(member.as_deref());
                let len = key.len();
                match self.rows.insert(key, member) {
                    Some(replaced) => set.remove(replaced.as_deref()),
                    None => self.key_bytes += len,
                }
            }
            Effect::Out(key) => {
                if let Some(member) = self.rows.remove(&key) {
                    self.key_bytes -= key.len();
                    set.remove(member.as_deref());
                }
            }
            Effect::Emptied => {
                self.key_bytes = 0;
                for (_, member) in self.rows.drain() {
                    set.remove(member.as_deref());
                }
            }
            Effect::End(position) => set.end(Some(position)),
        }
    }

    /// About its size in memory, without the set's.
    pub(super) fn byte_count(&self) -> usize {
        self.key_bytes + ROW_BYTES * self.rows.len()
    }
}

impl Effect {
    fn of(found: Found) -> Self {
        if found.is_in { Effect::In(found.key, found.member) } else { Effect::Out(found.key) }
    }
}

/// Behind all others.
const MAX: Position = Position { lsn: tidegate_model::Lsn(u64::MAX), ordinal: u32::MAX };
