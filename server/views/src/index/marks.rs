//! Which entries a row has found, each once, and on which sides of the change. Nothing is cleared between rows: a mark counts
//! only with the row's own stamp.

/// The row before the change.
pub(super) const OLD: u8 = 1;
/// The row after it.
pub(super) const NEW: u8 = 2;
pub(super) const BOTH: u8 = OLD | NEW;

#[derive(Debug, Default)]
pub(super) struct Marks {
    stamp: u32,
    /// By entry: the stamp of the row that found it last, and the sides.
    marks: Vec<(u32, u8)>,
    found: Vec<u32>,
}

impl Marks {
    /// The next row, and how many entries there may be.
    pub(super) fn begin(&mut self, capacity: usize) {
        self.found.clear();
        if self.stamp == u32::MAX {
            self.marks.clear();
            self.stamp = 0;
        }
        self.stamp += 1;
        self.marks.resize(self.marks.len().max(capacity), (0, 0));
    }

    pub(super) fn hit(&mut self, entry: u32, sides: u8) {
        let mark = &mut self.marks[entry as usize];
        if mark.0 != self.stamp {
            *mark = (self.stamp, 0);
            self.found.push(entry);
        }
        mark.1 |= sides;
    }

    pub(super) fn found(&self) -> impl Iterator<Item = (u32, u8)> {
        self.found.iter().map(|&entry| (entry, self.marks[entry as usize].1))
    }
}
