//! The keys of a table that transactions have touched while a snapshot of it runs, each with its newest image.
//!
//! ```text
//! change ─▶ images: key ─▶ newest writer, row or deleted, gaps     lookup(key, what a chunk sees) ─▶ Fate
//!      └──▶ gaps:   keys that a subscriber may hold incomplete     read again by key, before the snapshot ends
//! ```
//!
//! A **gap** is a field whose value was not sent (TOAST, left unchanged) and is not known from an earlier image of the same
//! row. Each image knows its **lineage**: the writer that brought the row to this key, by inserting or moving it; none where
//! it was there before the tracking began. A chunk's row may fill the gaps where the chunk sees that writer: from there on
//! the row was only updated in place, and none of these updates has changed the fields in question.
//!
//! Invariants: of all writers since the tracking began that a chunk does not see, each key has the newest; a transaction whose
//! traces are not here, though it came before, is in `must_see`. A key that a subscriber may hold incomplete, and that no
//! chunk to come is certain to cover, is in `gaps`. Memory is bounded: over the budget, images are given up and their writers
//! must be seen; over the bound for gaps, the whole table is read once more.

use std::collections::{HashMap, VecDeque};

use tidegate_model::{Op, Part, Visibility};
use tidegate_schema::FieldSet;

use super::{
    change::{fields, write_key},
    gaps::Gaps,
};
use tidegate_schema::{ChangeParts, OldKind};

/// Bytes of an image beyond its key and row: map, counts, addresses.
const IMAGE_BYTES: usize = 128;
/// Images that may go are looked for at every so many prunings, and whenever their number has doubled.
const PRUNE_EVERY: u32 = 64;

/// How much a table may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Bytes of images.
    pub(crate) image_bytes: usize,
    /// Bytes of keys with gaps.
    pub(crate) gap_bytes: usize,
}

/// Which rows the chunks of a pass have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Covers {
    /// All.
    #[default]
    All,
    /// Those that meet a condition when they are read. What meets it later has been changed since, and the change was told; it
    /// lacks what it has left unchanged, unless the pass had read the row.
    Condition,
    /// Those of some keys. One that is not read does not exist.
    Keys,
}

impl Covers {
    pub(crate) fn of(part: Option<&Part>) -> Self {
        match part {
            None => Covers::All,
            Some(Part::Where(_)) => Covers::Condition,
            Some(Part::Keys(_)) => Covers::Keys,
        }
    }
}

/// What transactions have done to a table since its tracking began.
#[derive(Debug)]
pub(crate) struct Touched {
    key: FieldSet,
    covers: Covers,
    limits: Limits,
    images: HashMap<Box<[u8]>, Image>,
    image_bytes: usize,
    /// Of images and truncates, in decode order.
    writers: VecDeque<u32>,
    /// Writers whose images are not here.
    must_see: Vec<u32>,
    truncated_by: Option<u32>,
    /// The budget was exceeded in the midst of this transaction: no image of it is kept.
    giving_up: Option<u32>,
    gaps: Gaps,
    pass_done: bool,
    rekeyed: bool,
    kept_by_last_prune: usize,
    prune_count: u32,
    new_key: Vec<u8>,
    old_key: Vec<u8>,
}

/// The newest state of a key.
#[derive(Debug)]
struct Image {
    writer: u32,
    row: Option<Row>,
}

/// A row as far as it is known.
#[derive(Debug)]
struct Row {
    row_type: u32,
    bytes: Box<[u8]>,
    gaps: Box<[u32]>,
    /// Who brought the row to this key; none: it was there when the tracking began.
    lineage: Option<u32>,
}

/// What becomes of a chunk's row.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is the newest.
    Keep,
    /// The key is gone.
    Gone,
    /// This is the newest row, complete.
    Replace { row_type: u32, row: Vec<u8> },
    /// The newest row is known with gaps that this chunk cannot fill.
    Incomplete,
}

impl Touched {
    /// Tracking begins. `must_see` are the writers of the table that were decoded before and that no snapshot has shown
    /// visible ([`super::Unseen::writers`]). `key` must not be empty: a table without a key cannot be tracked.
    pub(crate) fn new(key: FieldSet, limits: Limits, must_see: Vec<u32>, gaps: Gaps, pass_done: bool) -> Self {
        assert!(!key.is_empty(), "a table without a key is never tracked");
        Touched {
            key,
            covers: Covers::All,
            limits,
            images: HashMap::new(),
            image_bytes: 0,
            writers: VecDeque::new(),
            must_see,
            truncated_by: None,
            giving_up: None,
            gaps,
            pass_done,
            rekeyed: false,
            kept_by_last_prune: 0,
            prune_count: 0,
            new_key: Vec::new(),
            old_key: Vec::new(),
        }
    }

    /// The chunks have these rows.
    pub(crate) fn covering(self, covers: Covers) -> Self {
        Touched { covers, ..self }
    }

    /// The row type that changes come with from here on has this key.
    pub(crate) fn keyed_by(&mut self, key: &FieldSet) {
        self.rekeyed |= *key != self.key;
    }

    /// Has the table another key than when the tracking began? Then the pass must begin anew.
    pub(crate) fn is_rekeyed(&self) -> bool {
        self.rekeyed
    }

    /// A writer of the table whose changes are not told: no chunk counts that does not see it.
    pub(crate) fn must_see(&mut self, xid: u32) {
        if self.must_see.last() != Some(&xid) {
            self.must_see.push(xid);
        }
    }

    /// A change of the table, in commit order, whatever was rolled back left out.
    pub(crate) fn change(&mut self, xid: u32, change: &ChangeParts<'_>) {
        if self.rekeyed {
            return;
        }
        if self.writers.back() != Some(&xid) {
            self.writers.push_back(xid);
            self.giving_up = None;
        }
        match change.op {
            Op::Truncate => {
                self.images.clear();
                self.image_bytes = 0;
                self.truncated_by = Some(xid);
                self.gaps.remove_all();
            }
            Op::Insert => {
                write_key(&self.key, change.row, change.old, &mut self.new_key);
                let row = complete(change, None, Some(xid));
                self.gaps.is_whole_or_not(&self.new_key, change.unchanged.is_empty());
                self.put(xid, Some(row));
            }
            Op::Update => self.update(xid, change),
            Op::Delete => {
                write_key(&self.key, change.old, &[], &mut self.new_key);
                self.gaps.remove(&self.new_key);
                self.put(xid, None);
            }
            Op::None | Op::Read | Op::Message => {}
        }
        if self.image_bytes > self.limits.image_bytes {
            self.give_up(xid);
        }
        if self.gaps.byte_count() > self.limits.gap_bytes {
            self.gaps.give_up();
            self.pass_done = false;
        }
    }

    fn update(&mut self, xid: u32, change: &ChangeParts<'_>) {
        write_key(&self.key, change.row, change.old, &mut self.new_key);
        let moved = change.old_kind != OldKind::None && {
            write_key(&self.key, change.old, &[], &mut self.old_key);
            self.old_key != self.new_key
        };
        if !moved {
            let before = self.images.get(&self.new_key[..]);
            let lineage = match before {
                None => None,
                Some(Image { row: Some(row), .. }) => row.lineage,
                Some(Image { row: None, .. }) => Some(xid),
            };
            let row = complete(change, before, lineage);
            if change.unchanged.is_empty() {
                self.gaps.remove(&self.new_key);
            } else if self.covers == Covers::Condition && !row.gaps.is_empty() {
                self.gaps.add_late(&self.new_key);
            }
            return self.put(xid, Some(row));
        }
        let row = complete(change, self.images.get(&self.old_key[..]), Some(xid));
        // A subscriber holds the row whole where it was sent all of it, or where the pass has covered the old key.
        let was_covered = self.covers == Covers::All && self.pass_done;
        let held_whole = !self.gaps.remove(&self.old_key) && (was_covered || row.gaps.is_empty());
        self.gaps.is_whole_or_not(&self.new_key, change.unchanged.is_empty() || held_whole);
        self.put(xid, Some(row));
        std::mem::swap(&mut self.new_key, &mut self.old_key);
        self.put(xid, None);
    }

    /// Sets the image of the key in `new_key`.
    fn put(&mut self, writer: u32, row: Option<Row>) {
        if self.giving_up == Some(writer) {
            return;
        }
        self.image_bytes += byte_count(&self.new_key, row.as_ref());
        let image = Image { writer, row };
        if let Some(known) = self.images.get_mut(&self.new_key[..]) {
            let before = std::mem::replace(known, image);
            self.image_bytes -= byte_count(&self.new_key, before.row.as_ref());
        } else {
            self.images.insert(self.new_key.as_slice().into(), image);
        }
    }

    fn give_up(&mut self, xid: u32) {
        self.images = HashMap::new();
        self.image_bytes = 0;
        self.truncated_by = None;
        self.must_see.extend(self.writers.drain(..));
        self.writers.push_back(xid);
        self.giving_up = Some(xid);
    }

    /// Every chunk that is still to be reconciled sees at least this.
    pub(crate) fn prune(&mut self, visibility: &Visibility) {
        self.writers.retain(|xid| !visibility.sees_xid(*xid));
        self.must_see.retain(|xid| !visibility.sees_xid(*xid));
        self.truncated_by = self.truncated_by.filter(|xid| !visibility.sees_xid(*xid));
        self.prune_count = self.prune_count.wrapping_add(1);
        if self.images.len() > 2 * self.kept_by_last_prune + 1_000 || self.prune_count.is_multiple_of(PRUNE_EVERY) {
            let image_bytes = &mut self.image_bytes;
            self.images.retain(|key, image| {
                let keep = !visibility.sees_xid(image.writer);
                *image_bytes -= if keep { 0 } else { byte_count(key, image.row.as_ref()) };
                keep
            });
            self.kept_by_last_prune = self.images.len();
        }
    }

    /// Does the snapshot not see a writer whose changes are not here?
    pub(crate) fn hides(&self, visibility: &Visibility) -> bool {
        self.must_see.iter().any(|xid| !visibility.sees_xid(*xid))
    }

    /// Does the snapshot see every writer, so that each row of the chunk is the newest?
    pub(crate) fn is_clean_for(&self, visibility: &Visibility) -> bool {
        self.writers.iter().rev().all(|xid| visibility.sees_xid(*xid))
    }

    /// What becomes of a row of a chunk, given what its snapshot sees.
    pub(crate) fn fate(&self, key: &[u8], row: &[u8], visibility: &Visibility) -> Fate {
        let hidden = |xid: u32| !visibility.sees_xid(xid);
        let Some(image) = self.images.get(key) else {
            return if self.truncated_by.is_some_and(hidden) { Fate::Gone } else { Fate::Keep };
        };
        if !hidden(image.writer) {
            return Fate::Keep;
        }
        let Some(newest) = &image.row else { return Fate::Gone };
        let mut complete = newest.bytes.to_vec();
        if !newest.gaps.is_empty() {
            if newest.lineage.is_some_and(hidden) {
                return Fate::Incomplete;
            }
            let before = complete.len();
            let fill = fields(row).filter(|field| newest.gaps.contains(&field.number));
            let filled = fill.map(|field| complete.extend_from_slice(field.whole)).count();
            if filled < newest.gaps.len() {
                complete.truncate(before);
                return Fate::Incomplete;
            }
        }
        Fate::Replace { row_type: newest.row_type, row: complete }
    }

    /// Does the stream hold a newer row at this key than a snapshot in which the key is not?
    pub(crate) fn has_newer(&self, key: &[u8], visibility: &Visibility) -> bool {
        let image = self.images.get(key).filter(|image| !visibility.sees_xid(image.writer));
        image.is_some_and(|image| image.row.is_some())
    }

    /// The key's fields.
    pub(crate) fn key(&self) -> &FieldSet {
        &self.key
    }

    /// The keys that must be read again.
    pub(crate) fn gaps(&self) -> &Gaps {
        &self.gaps
    }

    /// A chunk has been reconciled and changes them.
    pub(crate) fn gaps_mut(&mut self) -> &mut Gaps {
        &mut self.gaps
    }

    /// Has every chunk of the pass been emitted?
    pub(crate) fn is_pass_done(&self) -> bool {
        self.pass_done
    }

    /// The last chunk of the pass has been emitted.
    pub(crate) fn pass_done(&mut self) {
        self.pass_done = true;
    }

    /// The pass begins anew, at the first key. A row whose gap was given up may be of a writer that is not visible yet: what is
    /// read from here on must see it.
    pub(crate) fn restart_pass(&mut self) {
        self.must_see.extend(&self.writers);
        self.pass_done = false;
        self.gaps.clear();
    }
}

fn byte_count(key: &[u8], row: Option<&Row>) -> usize {
    IMAGE_BYTES + key.len() + row.map_or(0, |row| row.bytes.len() + 4 * row.gaps.len())
}

/// The new row, its unchanged fields taken from the image of the same row before.
fn complete(change: &ChangeParts<'_>, before: Option<&Image>, lineage: Option<u32>) -> Row {
    let before = before.and_then(|image| image.row.as_ref());
    let row_type = change.row_type;
    if change.unchanged.is_empty() {
        return Row { row_type, bytes: change.row.into(), gaps: [].into(), lineage };
    }
    let Some(before) = before else {
        return Row { row_type, bytes: change.row.into(), gaps: change.unchanged.into(), lineage };
    };
    let (gaps, known): (Vec<u32>, Vec<u32>) = change.unchanged.iter().partition(|field| before.gaps.contains(field));
    let mut bytes = Vec::with_capacity(change.row.len() + before.bytes.len());
    bytes.extend_from_slice(change.row);
    let carried = fields(&before.bytes).filter(|field| known.contains(&field.number));
    carried.for_each(|field| bytes.extend_from_slice(field.whole));
    Row { row_type, bytes: bytes.into(), gaps: gaps.into(), lineage }
}

#[cfg(test)]
mod tests;
