//! Keys of rows that a subscriber may hold with a field missing: to be read again, by key, before the snapshot ends.
//!
//! A restart must not forget them: they are part of every cursor that is recorded, and a transaction that adds one is
//! followed by a record of its own ([`Gaps::take_unrecorded`]). Its size is bounded by the tracking's limits: where there are too
//! many, they are given up, and the whole table is to be read once more.
//!
//! Keys of which only some would ever have to be read may be recorded late ([`Gaps::add_late`]): that there are such keys is recorded
//! with the first, and after a restart the pass begins anew.
//!
//! Format, of what is recorded: a byte (1: another pass, 2: keys may be missing), then each key with its length before it, as a
//! varint.

use std::collections::HashSet;

use bytes::{BufMut, BytesMut};
use tidegate_schema::wire::{put_varint, read_varint};

/// Bytes of a key beyond itself.
const KEY_BYTES: usize = 48;

/// The keys, or that there were too many.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Gaps {
    keys: HashSet<Box<[u8]>>,
    byte_count: usize,
    another_pass: bool,
    unrecorded: bool,
    /// Keys may be in that are recorded later than they were added.
    late: bool,
}

impl Gaps {
    /// Is every row held whole that the pass has covered?
    pub(crate) fn is_empty(&self) -> bool {
        self.keys.is_empty() && !self.another_pass
    }

    /// Were there too many? Then the whole table is to be read once more.
    pub(crate) fn wants_another_pass(&self) -> bool {
        self.another_pass
    }

    /// Some of the keys, at most so many.
    pub(crate) fn keys(&self, count_max: usize) -> Vec<Box<[u8]>> {
        self.keys.iter().take(count_max).cloned().collect()
    }

    /// Has a key been added since this was last asked? Then they are to be recorded before anything else becomes durable.
    pub(crate) fn take_unrecorded(&mut self) -> bool {
        std::mem::take(&mut self.unrecorded)
    }

    /// Bytes in memory.
    pub(crate) fn byte_count(&self) -> usize {
        self.byte_count
    }

    /// The row at this key is held whole, or is not.
    pub(crate) fn is_whole_or_not(&mut self, key: &[u8], whole: bool) {
        if whole {
            self.remove(key);
        } else {
            self.add(key);
        }
    }

    /// The row at this key may be held incomplete.
    pub(crate) fn add(&mut self, key: &[u8]) {
        if !self.another_pass && self.keys.insert(key.into()) {
            self.byte_count += KEY_BYTES + key.len();
            self.unrecorded = true;
        }
    }

    /// The same, of so many keys that not each can have a record of its own.
    pub(crate) fn add_late(&mut self, key: &[u8]) {
        let unrecorded = self.unrecorded || !self.late;
        self.add(key);
        (self.unrecorded, self.late) = (unrecorded, true);
    }

    /// As it was recorded: may keys be missing?
    pub(crate) fn may_lack_keys(&self) -> bool {
        self.late
    }

    /// The row at this key is held whole, or is gone. Was it in?
    pub(crate) fn remove(&mut self, key: &[u8]) -> bool {
        let was_in = self.keys.remove(key);
        self.byte_count -= if was_in { KEY_BYTES + key.len() } else { 0 };
        was_in
    }

    /// Every row is gone. Another pass that was asked for is still to come.
    pub(crate) fn remove_all(&mut self) {
        *self = Gaps { another_pass: self.another_pass, ..Gaps::default() };
    }

    /// The pass begins anew.
    pub(crate) fn clear(&mut self) {
        *self = Gaps::default();
    }

    /// There are too many.
    pub(crate) fn give_up(&mut self) {
        *self = Gaps { another_pass: true, unrecorded: true, ..Gaps::default() };
    }

    /// As it is recorded.
    pub(crate) fn encode(&self) -> BytesMut {
        let mut out = BytesMut::with_capacity(1 + self.byte_count);
        out.put_u8(u8::from(self.another_pass) | u8::from(self.late) << 1);
        for key in &self.keys {
            put_varint(&mut out, key.len() as u64);
            out.put_slice(key);
        }
        out
    }

    /// What `encode` wrote; None for other bytes.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (flags, mut bytes) = bytes.split_first()?;
        let mut gaps = Gaps::default();
        while !bytes.is_empty() {
            let (len, skip) = read_varint(bytes).ok()?;
            let end = skip.checked_add(usize::try_from(len).ok()?)?;
            gaps.add(bytes.get(skip..end)?);
            bytes = &bytes[end..];
        }
        Some(Gaps { another_pass: flags & 1 != 0, late: flags & 2 != 0, unrecorded: false, ..gaps })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_recorded_is_read_back(keys in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..8)) {
            let mut gaps = Gaps::default();
            keys.iter().for_each(|key| gaps.add(key));
            prop_assert_eq!(gaps.take_unrecorded(), !keys.is_empty());
            prop_assert_eq!(Gaps::decode(&gaps.encode()), Some(gaps));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _decoded_or_refused = Gaps::decode(&bytes).is_some();
        }
    }

    #[test]
    fn of_keys_that_are_added_late_the_first_is_recorded_at_once() {
        let mut gaps = Gaps::default();
        gaps.add_late(b"a");
        assert!(gaps.take_unrecorded() && Gaps::decode(&gaps.encode()).is_some_and(|read| read.may_lack_keys()));
        gaps.add_late(b"b");
        assert!(!gaps.take_unrecorded());
        gaps.add(b"c");
        gaps.add_late(b"d");
        assert!(gaps.take_unrecorded() && gaps.keys(9).len() == 4);
        gaps.clear();
        gaps.add_late(b"e");
        assert!(gaps.take_unrecorded());
    }

    #[test]
    fn what_is_given_up_is_recorded_and_ends_with_a_new_pass() {
        let mut gaps = Gaps::default();
        gaps.add(b"key");
        gaps.give_up();
        gaps.add(b"other");
        assert!(
            gaps.take_unrecorded() && gaps.wants_another_pass() && gaps.keys(9).is_empty() && gaps.byte_count() == 0
        );
        assert!(Gaps::decode(&gaps.encode()).is_some_and(|read| read.wants_another_pass()));
        gaps.clear();
        assert!(gaps.is_empty());
    }
}
