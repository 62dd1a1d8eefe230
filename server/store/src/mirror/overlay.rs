//! What the engine does not hold yet: per key the newest value of each transaction that is not applied.
//!
//! Invariant: a key's versions ascend by transaction, one for each. Bounded by its owner, who applies and removes.

use std::{collections::BTreeMap, ops::Bound};

use bytes::Bytes;

/// What a version costs besides its bytes.
const VERSION_BYTES: usize = 120;

/// A value, or None where the key is removed.
pub(crate) type Staged = Option<Bytes>;

#[derive(Debug, Default)]
pub(crate) struct Overlay {
    keys: BTreeMap<Bytes, Vec<(u64, Staged)>>,
    byte_count: usize,
}

impl Overlay {
    pub(crate) fn byte_count(&self) -> usize {
        self.byte_count
    }

    pub(crate) fn put(&mut self, key: Bytes, transaction: u64, value: Staged) {
        self.byte_count += cost(&key, &value);
        let versions = self.keys.entry(key.clone()).or_default();
        match versions.last_mut() {
            Some((last, old)) if *last == transaction => {
                self.byte_count -= cost(&key, old);
                *old = value;
            }
            Some(_) | None => versions.push((transaction, value)),
        }
    }

    /// Is there anything of this transaction?
    pub(crate) fn holds(&self, transaction: u64) -> bool {
        self.keys.values().flatten().any(|(n, _)| *n == transaction)
    }

    /// The newest version.
    pub(crate) fn newest(&self, key: &[u8]) -> Option<&Staged> {
        self.keys.get(key).and_then(|versions| versions.last()).map(|(_, value)| value)
    }

    /// The newest version up to a transaction.
    pub(crate) fn at(&self, key: &[u8], transaction: u64) -> Option<&Staged> {
        self.keys.get(key).and_then(|versions| up_to(versions, transaction))
    }

    /// All keys that start with the prefix, as they were at the end of a transaction.
    pub(crate) fn copy(&self, prefix: &[u8], transaction: u64, into: &mut BTreeMap<Bytes, Staged>) {
        let from = self.keys.range::<[u8], _>((Bound::Included(prefix), Bound::Unbounded));
        for (key, versions) in from.take_while(|(key, _)| key.starts_with(prefix)) {
            if let Some(value) = up_to(versions, transaction) {
                into.insert(key.clone(), value.clone());
            }
        }
    }

    /// As [`Overlay::copy`], of the keys behind one, and of at most so many: where there are more, the last that was looked at.
    pub(crate) fn copy_some(
        &self,
        (prefix, after): (&[u8], &[u8]),
        transaction: u64,
        count_max: usize,
        into: &mut BTreeMap<Bytes, Staged>,
    ) -> Option<Bytes> {
        let behind = self.keys.range::<[u8], _>((Bound::Excluded(after), Bound::Unbounded));
        let mut last = None;
        for (count, (key, versions)) in behind.take_while(|(key, _)| key.starts_with(prefix)).enumerate() {
            if count == count_max {
                return last;
            }
            if let Some(value) = up_to(versions, transaction) {
                into.insert(key.clone(), value.clone());
            }
            last = Some(key.clone());
        }
        None
    }

    /// The newest version of each key up to a transaction.
    pub(crate) fn through(&self, transaction: u64) -> impl Iterator<Item = (&Bytes, &Staged)> {
        self.keys.iter().filter_map(move |(key, versions)| up_to(versions, transaction).map(|value| (key, value)))
    }

    /// Removes all versions up to a transaction: the engine has them.
    pub(crate) fn remove_through(&mut self, transaction: u64) {
        let byte_count = &mut self.byte_count;
        self.keys.retain(|key, versions| {
            versions.retain(|(n, value)| {
                if *n <= transaction {
                    *byte_count -= cost(key, value);
                }
                *n > transaction
            });
            !versions.is_empty()
        });
    }
}

fn up_to(versions: &[(u64, Staged)], transaction: u64) -> Option<&Staged> {
    versions.iter().rev().find(|(n, _)| *n <= transaction).map(|(_, value)| value)
}

fn cost(key: &Bytes, value: &Staged) -> usize {
    VERSION_BYTES + key.len() + value.as_ref().map_or(0, Bytes::len)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    #[test]
    fn each_transaction_sees_its_own_version() {
        let mut overlay = Overlay::default();
        overlay.put(bytes("a"), 1, Some(bytes("1")));
        overlay.put(bytes("a"), 2, Some(bytes("2")));
        overlay.put(bytes("a"), 2, None);
        overlay.put(bytes("ab"), 3, Some(bytes("3")));
        assert_eq!(overlay.at(b"a", 1), Some(&Some(bytes("1"))));
        assert_eq!((overlay.at(b"a", 0), overlay.newest(b"a")), (None, Some(&None)));
        let mut copy = BTreeMap::new();
        overlay.copy(b"a", 2, &mut copy);
        assert_eq!(copy.into_iter().collect::<Vec<_>>(), [(bytes("a"), None)]);
        let mut some = BTreeMap::new();
        assert_eq!(overlay.copy_some((b"a", b"a"), 3, 1, &mut some), None);
        assert_eq!(some.len(), 1);
        assert_eq!(overlay.copy_some((b"a", b""), 3, 1, &mut BTreeMap::new()), Some(bytes("a")));
        overlay.remove_through(2);
        assert_eq!((overlay.newest(b"a"), overlay.newest(b"ab")), (None, Some(&Some(bytes("3")))));
        overlay.remove_through(3);
        assert_eq!(overlay.byte_count(), 0);
    }
}
