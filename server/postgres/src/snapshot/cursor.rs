//! Where a keyset pass over a table stands: the key of the last row that was read.
//!
//! Invariant: a cursor continues only a pass in the same order. So it carries, besides the key's texts, a digest of the order
//! (columns, types, collations, operators), and a reader compares it with the plan's.

const VERSION: u8 = 1;

/// The last row's key, as PostgreSQL's texts. Opaque to all but the reader; its `Debug` shows no values.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Cursor {
    pub(super) order: u64,
    pub(super) key: Vec<Box<[u8]>>,
}

/// A cursor does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CursorError {
    /// The bytes are not a cursor.
    #[error("the cursor is damaged")]
    Damaged,
    /// From a newer version of Tidegate.
    #[error("the cursor has version {version}, of a newer Tidegate")]
    Version {
        /// Its first byte.
        version: u8,
    },
    /// Columns, types or collations of the key have changed.
    #[error("the table's key has changed since")]
    OtherKey,
}

impl Cursor {
    /// For storing: version, order, then each value with its length.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(&self.order.to_be_bytes());
        for value in &self.key {
            let length = u32::try_from(value.len()).expect("the server sends no value above 1 GiB");
            bytes.extend_from_slice(&length.to_be_bytes());
            bytes.extend_from_slice(value);
        }
        bytes
    }

    /// What [`Cursor::to_bytes`] wrote.
    ///
    /// # Errors
    /// [`CursorError::Damaged`], [`CursorError::Version`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CursorError> {
        let (&version, rest) = bytes.split_first().ok_or(CursorError::Damaged)?;
        if version != VERSION {
            return Err(CursorError::Version { version });
        }
        let (order, mut rest) = rest.split_first_chunk().ok_or(CursorError::Damaged)?;
        let mut key = Vec::new();
        while !rest.is_empty() {
            let (length, after) = rest.split_first_chunk().ok_or(CursorError::Damaged)?;
            let length = u32::from_be_bytes(*length) as usize;
            let (value, after) = after.split_at_checked(length).ok_or(CursorError::Damaged)?;
            key.push(value.into());
            rest = after;
        }
        Ok(Cursor { order: u64::from_be_bytes(*order), key })
    }
}

impl std::fmt::Debug for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cursor").field("order", &self.order).field("columns", &self.key.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            order in any::<u64>(),
            key in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..20), 0..4),
        ) {
            let cursor = Cursor { order, key: key.into_iter().map(Into::into).collect() };
            prop_assert_eq!(Cursor::from_bytes(&cursor.to_bytes()), Ok(cursor));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _read_or_refused = Cursor::from_bytes(&bytes).is_ok();
        }
    }

    #[test]
    fn version_1_stays_readable() {
        let bytes = [1, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 2, b'4', b'2', 0, 0, 0, 0];
        let cursor = Cursor { order: 9, key: vec![b"42"[..].into(), b""[..].into()] };
        assert_eq!(Cursor::from_bytes(&bytes), Ok(cursor));
        assert_eq!(Cursor::from_bytes(&[2, 0]), Err(CursorError::Version { version: 2 }));
    }
}
