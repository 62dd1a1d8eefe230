//! Which shapes does a row concern? Many conditions on the rows of one table, found by what rows have instead of tried one
//! after the other.
//!
//! ```text
//!             column's key           lookups                  entries (equal conditions are one)
//! row ──┬── tenant  ▶ hash ───────▶ {7} ─────────────┐
//!       ├── price   ▶ interval tree ▶ [5, 10) ───────┼──▶ condition: the parts that the lookup has ──▶ shapes, each
//!       ├── sku     ▶ interval tree ▶ 'ab%' ─────────┤    not proven are evaluated, once for all      with its columns
//!       ├── deleted ▶ NULL ──────────────────────────┘    shapes that share it
//!       └── each row ▶ what no lookup serves ────────────▶ (evaluated for each row)
//! ```
//!
//! A condition in its normal form is a list of parts with AND between them. One part is looked up, the one that promises the
//! fewest rows: by its kind, and by how many conditions share its lookup already; parts on the same column are one set of
//! values. Of an OR all branches are looked up, if each can be, and of an array that contains some values one of these.
//! Equality, IN and NULL are hashed; ranges and prefixes are
//! intervals of keys, on which one tree answers both (`index/intervals.rs`). What the lookup proves is not evaluated again, and
//! often that is the whole condition; where it is one branch of an OR that proves nothing of the others, the whole OR is
//! evaluated, since that is right whichever branch has found it. A part that says what the lookup says is not kept at all, and
//! parts that conditions share are there once. Values are bytes here, so that nothing below knows a type.
//!
//! **Cost of a row.** One pass over its bytes; for each column that is looked up, its key, a probe of a hash and a walk of
//! O(log n) nodes, and O(log n) for each interval around the value; an evaluation for each condition found whose lookup does not
//! prove it, and for each that no lookup serves. Conditions that are not found cost nothing and allocate nothing, but
//! that an array whose elements are looked up is decoded. An update
//! looks up a column twice only if it has changed. Inserting and removing costs O(log n) for each lookup of the condition.
//!
//! The exception: a value that the table's description does not know (an enum's new label) fails those who read it, and to
//! find them every condition is tried for that row, until the shapes are defined anew.
//!
//! Invariant: the answer is that of [`Predicate::selects`] for each shape, whatever is looked up and in whatever order shapes
//! came. It holds no rows and remembers none; who calls brings both, whole.

mod columns;
mod explanation;
mod intervals;
mod lookups;
mod marks;
mod parts;
mod plan;
#[cfg(test)]
mod simulation;

pub use explanation::{Explanation, LookupKind, Served};

use std::collections::HashMap;
use std::hash::Hash;

use slab::Slab;
use tidegate_model::Retry;
use tidegate_schema::wire::{Fields, WireError};

use crate::predicate::{Access, Cells, Failure, Input, Part, Predicate, Row, RowError, all_true};
use columns::Columns;
use lookups::{Lookups, Posting};
use marks::{BOTH, Marks, NEW, OLD};
use parts::{PartOfEntry, Parts};
use plan::{Plan, plan};

/// The conditions of one table's shapes.
#[derive(Debug)]
pub struct Index<Id> {
    columns: Columns,
    entries: Slab<Entry<Id>>,
    lookups: Lookups,
    parts: Parts,
    /// The entry of a condition, by the beginning of its hash. Where two begin alike, the later one is shared with nobody.
    by_hash: HashMap<u64, u32>,
    /// A shape's entry, and its place among those that share it.
    places: HashMap<Id, (u32, u32)>,
}

/// A condition with the shapes that have it.
#[derive(Debug)]
struct Entry<Id> {
    hash: [u8; 32],
    columns: Box<[usize]>,
    parts: Box<[PartOfEntry]>,
    postings: Box<[Posting]>,
    shapes: Vec<Member<Id>>,
}

#[derive(Debug)]
struct Member<Id> {
    id: Id,
    /// Numbers of the selected columns; None is all.
    fields: Option<Box<[u32]>>,
}

/// What a change of a row is to a shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// The row was in it and is, and a selected column has changed.
    Update,
    /// It is in it now: it was not, or there was no row.
    MoveIn,
    /// It was in it.
    MoveOut,
}

/// A shape that a change concerns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routed<Id> {
    /// The shape.
    pub id: Id,
    /// What the change is to it; or why that is not known, which concerns no other shape.
    pub effect: Result<Effect, Failure>,
}

/// Why a shape is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// By its id.
    #[error("the index has this shape already; remove it first")]
    Present,
}

impl IndexError {
    /// What to do: the same is refused again.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            IndexError::Present => Retry::Never,
        }
    }
}

/// What has been done for rows, in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effort {
    /// Conditions that were found.
    pub candidates: u64,
    /// Conditions that were evaluated, wholly or in part.
    pub evaluations: u64,
    /// Hashes that were probed and nodes of trees that were looked at.
    pub steps: u64,
}

/// What routing needs while it works, kept from row to row. One index may be read by many, each with a room of its own.
#[derive(Debug, Default)]
pub struct Room {
    marks: Marks,
    cells: [Cells; 2],
    key: Vec<u8>,
    effort: Effort,
}

impl Room {
    /// What has been done in it.
    #[must_use]
    pub fn effort(&self) -> Effort {
        self.effort
    }
}

impl<Id> Default for Index<Id> {
    fn default() -> Self {
        Index {
            columns: Columns::default(),
            entries: Slab::new(),
            lookups: Lookups::default(),
            parts: Parts::default(),
            by_hash: HashMap::new(),
            places: HashMap::new(),
        }
    }
}

impl<Id: Copy + Eq + Hash> Index<Id> {
    /// An empty index.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a shape: its condition, and the fields that it selects, where it does not select all. All conditions are about
    /// the same table; each keeps the table's description that it was made with. One that asks subqueries fails for each row,
    /// since the index knows no sets.
    ///
    /// # Errors
    /// The shape is there already.
    pub fn insert(&mut self, id: Id, predicate: &Predicate, fields: Option<&[u32]>) -> Result<(), IndexError> {
        if self.places.contains_key(&id) {
            return Err(IndexError::Present);
        }
        let number = self.entry_of(predicate).unwrap_or_else(|| self.add_entry(predicate));
        let fields = fields.map(|fields| {
            let mut fields = fields.to_vec();
            fields.sort_unstable();
            fields.dedup();
            fields.into_boxed_slice()
        });
        let shapes = &mut self.entries[number as usize].shapes;
        self.places.insert(id, (number, shapes.len() as u32));
        shapes.push(Member { id, fields });
        Ok(())
    }

    /// Removes a shape, and all that was there for it alone. False where it is not there.
    pub fn remove(&mut self, id: &Id) -> bool {
        let Some((number, place)) = self.places.remove(id) else { return false };
        let shapes = &mut self.entries[number as usize].shapes;
        shapes.swap_remove(place as usize);
        if let Some(moved) = shapes.get(place as usize) {
            self.places.insert(moved.id, (number, place));
        }
        if shapes.is_empty() {
            self.remove_entry(number);
        }
        lookups::shrink(&mut self.by_hash);
        lookups::shrink(&mut self.places);
        if self.entries.is_empty() {
            // Also the free places of lists, which stay for later otherwise.
            *self = Self::default();
        }
        true
    }

    /// How many shapes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Are there none?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// How many different conditions they have.
    #[must_use]
    pub fn condition_count(&self) -> usize {
        self.entries.len()
    }

    /// The shapes that a change concerns, in no order, appended to `routed`: the row before it, if there was one, and after
    /// it. Rows are whole: a field that is not there is NULL.
    ///
    /// # Errors
    /// A row is damaged; nothing is appended.
    pub fn route(
        &self,
        old: Option<&[u8]>,
        new: Option<&[u8]>,
        room: &mut Room,
        routed: &mut Vec<Routed<Id>>,
    ) -> Result<(), RowError> {
        let Room { marks, cells: [old_cells, new_cells], key, effort } = room;
        let inputs = self.columns.inputs();
        for (row, cells) in [(old, &mut *old_cells), (new, &mut *new_cells)] {
            cells.find(self.columns.by_field(), inputs.len(), row.unwrap_or_default())?;
        }
        let old_row = old.map(|row| Row::new(row, old_cells, inputs));
        let mut rows = [old_row, new.map(|row| Row::new(row, new_cells, inputs))];
        marks.begin(self.entries.capacity());
        let unreadable = self.find(&rows, marks, (key, effort));
        let mut changed = None;
        for (number, sides) in marks.found() {
            let entry = &self.entries[number as usize];
            effort.candidates += 1;
            let effect = match entry.verdicts(&mut rows, (sides, unreadable), &self.lookups, (key, effort)) {
                (Err(failure), _) | (_, Err(failure)) => Err(failure),
                (Ok(false), Ok(false)) => continue,
                (Ok(false), Ok(true)) => Ok(Effect::MoveIn),
                (Ok(true), Ok(false)) => Ok(Effect::MoveOut),
                (Ok(true), Ok(true)) => Ok(Effect::Update),
            };
            if effect == Ok(Effect::Update) && changed.is_none() {
                changed = Some(changed_fields(old.unwrap_or_default(), new.unwrap_or_default())?);
            }
            let changed = changed.as_deref().unwrap_or_default();
            for shape in &entry.shapes {
                if effect != Ok(Effect::Update) || shape.selects_one_of(changed) {
                    routed.push(Routed { id: shape.id, effect: effect.clone() });
                }
            }
        }
        Ok(())
    }

    /// What serves the condition, in words; of one that is not there, what would.
    #[must_use]
    pub fn explain(&self, predicate: &Predicate) -> Explanation {
        if !predicate.subqueries().is_empty() {
            return Explanation::of_asking(predicate);
        }
        let present = self.entry_of(predicate).map(|number| &self.entries[number as usize]);
        let (columns, parts, plan) = self.planned(predicate);
        let plan = match present {
            None => plan,
            Some(entry) => Plan {
                lookups: entry.postings.iter().filter_map(|posting| self.lookups.behind(posting)).collect(),
                proofs: entry.parts.iter().map(PartOfEntry::proof).collect(),
                each_row: self.lookups.is_for_each_row(&entry.postings),
            },
        };
        let name = |column: usize| {
            let place = columns.iter().position(|&other| other == column);
            place.map_or_else(String::new, |place| predicate.inputs()[place].name().to_owned())
        };
        Explanation::of(&plan, &parts, &self.lookups, name)
    }

    #[cfg(test)]
    fn holds_nothing(&self) -> bool {
        let Index { columns, entries, lookups, parts, by_hash, places } = self;
        let capacities = [entries.capacity(), parts.capacity(), by_hash.capacity(), places.capacity()];
        capacities == [0; 4]
            && columns.inputs().is_empty()
            && lookups.paths().next().is_none()
            && lookups.each_row().next().is_none()
    }

    /// The entry whose condition is equal to this one, and read in the same way.
    fn entry_of(&self, predicate: &Predicate) -> Option<u32> {
        let hash = predicate.hash();
        let number = *self.by_hash.get(&beginning(hash))?;
        let Entry { columns, .. } = Some(&self.entries[number as usize]).filter(|entry| entry.hash == hash)?;
        let places: Option<Vec<usize>> = read_inputs(predicate).map(|input| self.columns.place(input)).collect();
        // The order of columns is that in which they were written, which does not matter.
        let same = places
            .is_some_and(|places| places.len() == columns.len() && places.iter().all(|place| columns.contains(place)));
        same.then_some(number)
    }

    /// The condition's columns here, its parts in terms of these, and what would be looked up. A column that is not here has
    /// a number that no other has.
    fn planned(&self, predicate: &Predicate) -> (Vec<usize>, Vec<Part>, Plan) {
        let numbered = predicate.inputs().iter().enumerate();
        let place = |(number, input)| self.columns.place(input).unwrap_or(usize::MAX - number);
        let columns: Vec<usize> = numbered.map(place).collect();
        let parts: Vec<Part> = predicate.parts().iter().map(|part| part.renumbered(&columns)).collect();
        let own = |access| renumbered(access, &columns);
        let accesses: Vec<Access> = predicate.parts().iter().map(|part| own(part.access(predicate.inputs()))).collect();
        let plan = plan(&accesses, &self.lookups);
        (columns, parts, plan)
    }

    fn add_entry(&mut self, predicate: &Predicate) -> u32 {
        for input in read_inputs(predicate) {
            self.columns.hold(input);
        }
        let (_, parts, plan) = self.planned(predicate);
        let number = self.entries.vacant_key() as u32;
        let postings = self.lookups.add(number, &plan);
        let hash = predicate.hash();
        self.by_hash.entry(beginning(hash)).or_insert(number);
        let entry = Entry {
            hash,
            columns: read_inputs(predicate).filter_map(|input| self.columns.place(input)).collect(),
            parts: parts.into_iter().zip(plan.proofs).map(|(part, proof)| self.parts.hold(part, proof)).collect(),
            postings: postings.into(),
            shapes: Vec::with_capacity(1),
        };
        self.entries.insert(entry) as u32
    }

    fn remove_entry(&mut self, number: u32) {
        let mut entry = self.entries.remove(number as usize);
        if self.by_hash.get(&beginning(entry.hash)) == Some(&number) {
            self.by_hash.remove(&beginning(entry.hash));
        }
        let entries = &mut self.entries;
        self.lookups.remove(number, &mut entry.postings, |moved, at| {
            entries[moved.entry as usize].postings[moved.posting as usize].at = at;
        });
        entry.parts.into_iter().for_each(|part| self.parts.release(part));
        for &column in &entry.columns {
            self.columns.release(column);
        }
    }

    /// Marks the entries that the rows' values find. The sides on which a value could not be read, where all are found.
    fn find(&self, rows: &[Option<Row<'_>>; 2], marks: &mut Marks, (key, effort): (&mut Vec<u8>, &mut Effort)) -> u8 {
        let present = if rows[0].is_some() { OLD } else { 0 } | if rows[1].is_some() { NEW } else { 0 };
        let mut unreadable = 0;
        for path in self.lookups.paths() {
            let both = match rows {
                [Some(old), Some(new)] => old.agrees(new, path.column()),
                _ => false,
            };
            for (side, row) in [OLD, NEW].into_iter().zip(rows) {
                let Some(row) = row.as_ref().filter(|_| !both || side == NEW) else { continue };
                let side = if both { BOTH } else { side };
                row.each_key(path.path(), key, |keyed| {
                    match self.lookups.find(path, keyed, |entry| marks.hit(entry, side)) {
                        Some(steps) => effort.steps += steps as u64,
                        None => unreadable |= side,
                    }
                });
            }
        }
        for entry in self.lookups.each_row() {
            marks.hit(entry, present);
        }
        if unreadable > 0 {
            self.entries.iter().for_each(|(entry, _)| marks.hit(entry as u32, unreadable));
        }
        unreadable
    }
}

impl<Id> Entry<Id> {
    /// Is the old row selected, and the new one? `sides` are those on which it was found, `unreadable` those where that
    /// proves nothing.
    fn verdicts(
        &self,
        rows: &mut [Option<Row<'_>>; 2],
        (sides, unreadable): (u8, u8),
        lookups: &Lookups,
        (key, effort): (&mut Vec<u8>, &mut Effort),
    ) -> (Result<bool, Failure>, Result<bool, Failure>) {
        let [old, new] = rows;
        let same = match (&*old, &*new) {
            (Some(old), Some(new)) if sides == BOTH && unreadable == 0 => {
                let mut columns = self.open().flat_map(|part| &part.reads);
                columns.all(|&column| old.agrees(new, column))
            }
            _ => false,
        };
        let mut verdict = |row: &mut Option<Row<'_>>, side| {
            let Some(row) = row.as_mut().filter(|_| sides & side > 0) else { return Ok(false) };
            let is_proof = unreadable & side == 0;
            effort.evaluations += u64::from(!self.parts.is_empty() && !is_proof || self.open().next().is_some());
            all_true(self.parts.iter().filter_map(|part| match part {
                PartOfEntry::Open(part) => Some(row.holds(part)),
                PartOfEntry::LookedUp | PartOfEntry::Proven(_) if is_proof => None,
                PartOfEntry::Proven(part) => Some(row.holds(part)),
                PartOfEntry::LookedUp => Some(lookups.would_find(&self.postings, row, key)),
            }))
        };
        let old = verdict(old, OLD);
        if same { (old.clone(), old) } else { (old, verdict(new, NEW)) }
    }

    /// What is evaluated.
    fn open(&self) -> impl Iterator<Item = &Part> {
        self.parts.iter().filter_map(|part| match part {
            PartOfEntry::Open(part) => Some(&**part),
            PartOfEntry::LookedUp | PartOfEntry::Proven(_) => None,
        })
    }
}

impl<Id> Member<Id> {
    fn selects_one_of(&self, changed: &[u32]) -> bool {
        match &self.fields {
            None => !changed.is_empty(),
            Some(fields) => fields.iter().any(|field| changed.binary_search(field).is_ok()),
        }
    }
}

fn beginning(hash: [u8; 32]) -> u64 {
    u64::from_be_bytes(hash[..8].try_into().expect("eight bytes"))
}

/// The columns that are still read in the normal form.
fn read_inputs(predicate: &Predicate) -> impl Iterator<Item = &Input> {
    let is_read = |column: usize| predicate.parts().iter().any(|part| part.reads.binary_search(&column).is_ok());
    predicate.inputs().iter().enumerate().filter(move |&(column, _)| is_read(column)).map(|(_, input)| input)
}

fn renumbered(access: Access, columns: &[usize]) -> Access {
    let each = |accesses: Vec<Access>| accesses.into_iter().map(|access| renumbered(access, columns)).collect();
    match access {
        Access::Column(mut lookup) => {
            lookup.path.column = columns[lookup.path.column];
            Access::Column(lookup)
        }
        Access::All(accesses) => Access::All(each(accesses)),
        Access::Any(accesses) => Access::Any(each(accesses)),
        Access::Unknown => Access::Unknown,
    }
}

/// The fields whose bytes differ, ascending.
///
/// # Errors
/// A row is damaged.
pub fn changed_fields(old: &[u8], new: &[u8]) -> Result<Vec<u32>, WireError> {
    let sorted = |row| {
        let fields = Fields::new(row).map(|field| field.map(|field| (field.number, field.whole)));
        let mut fields = fields.collect::<Result<Vec<_>, _>>()?;
        fields.sort_unstable();
        Ok::<_, WireError>(fields)
    };
    let (old, new) = (sorted(old)?, sorted(new)?);
    let only = |ours: &[(u32, &[u8])], theirs: &[(u32, &[u8])]| {
        let fields = ours.iter().filter(|field| theirs.binary_search(field).is_err()).map(|&(number, _)| number);
        fields.collect::<Vec<_>>()
    };
    let mut changed = [only(&old, &new), only(&new, &old)].concat();
    changed.sort_unstable();
    changed.dedup();
    Ok(changed)
}
