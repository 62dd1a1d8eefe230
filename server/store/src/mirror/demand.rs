//! Tables that are mirrored since someone has asked for them, though the configuration does not name them.
//!
//! ```text
//! MirrorReader::request ──▶ requests ──writer──▶ the file `asked` ──▶ the tables that are followed ──▶ the mirror is opened again
//! ```
//!
//! Invariants: a request stays until its table is followed; what is followed is in the file first, so that it is followed after a
//! restart; what may not be asked for (any more) is not followed. The file outlives the mirrors beside it, which are each of one epoch.
//! While nothing is followed, there is no mirror.

use std::{collections::BTreeSet, fs, io, path::Path, sync::PoisonError};

use tidegate_model::{TableName, TablePatterns};

use super::{MirrorError, MirrorReader, error::Result};

/// In the mirror's own folder. Names are separated by NUL, which none can hold.
const FILE: &str = "asked";

impl MirrorReader {
    /// Is the table mirrored, or would it be if it were asked for?
    #[must_use]
    pub fn may_request(&self, table: &TableName) -> bool {
        let tables = self.tables_followed();
        tables.matches(table) || (self.shared.on_demand.matches(table) && !tables.leaves_out(table))
    }

    /// Has the table mirrored from now on, after a restart too. False where the configuration does not allow it.
    #[must_use]
    pub fn request(&self, table: &TableName) -> bool {
        if !self.may_request(table) {
            return false;
        }
        // No request may come behind the moment from which its table is followed: nobody would take it.
        let mut requests = self.shared.table_requests.write().unwrap_or_else(PoisonError::into_inner);
        if !self.follows(table) && requests.insert(table.clone()) {
            self.shared.requested.notify_one();
        }
        true
    }

    /// All that has been asked for and is not followed yet.
    pub(crate) fn table_requests(&self) -> BTreeSet<TableName> {
        self.shared.table_requests.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Follows these from now on; what was asked for among them is no request any more.
    pub(crate) fn follow(&self, tables: TablePatterns) {
        let mut requests = self.shared.table_requests.write().unwrap_or_else(PoisonError::into_inner);
        requests.retain(|table| !tables.matches(table));
        *self.shared.tables.write().unwrap_or_else(PoisonError::into_inner) = tables;
    }
}

/// The tables that have been asked for.
pub(crate) fn asked(dir: &Path) -> Result<BTreeSet<TableName>> {
    let text = match fs::read_to_string(dir.join(FILE)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(source) => return Err(MirrorError::Io { operation: "read", source }),
    };
    let names = text.split('\0').filter(|name| !name.is_empty()).map(str::parse);
    names
        .collect::<std::result::Result<_, _>>()
        .map_err(|_| MirrorError::Damaged("a table that was asked for has no name"))
}

/// Remembers them with those that were asked for before.
pub(crate) fn remember(dir: &Path, tables: &BTreeSet<TableName>) -> std::result::Result<(), crate::StoreError> {
    fs::create_dir_all(dir).map_err(|source| MirrorError::Io { operation: "create", source })?;
    let all = asked(dir)?.into_iter().chain(tables.iter().cloned()).collect::<BTreeSet<_>>();
    let text: Vec<String> = all.iter().map(TableName::to_string).collect();
    crate::layout::replace(dir, FILE, text.join("\0").as_bytes())?;
    crate::layout::sync_dir(super::engine::parent_of(dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_every_kind_are_remembered() {
        let dir = tempfile::tempdir().expect("a folder");
        let mirror = dir.path().join("shop.mirror");
        let tables = BTreeSet::from([TableName::new("public", "orders"), TableName::new("a \n b", "c.\"d\"")]);
        assert!(asked(&mirror).expect("nothing is there").is_empty());
        remember(&mirror, &tables).expect("written");
        remember(&mirror, &BTreeSet::from([TableName::new("public", "items")])).expect("written");
        let all = asked(&mirror).expect("readable");
        assert!(all.is_superset(&tables) && all.len() == 3, "{all:?}");
    }

    #[test]
    fn what_may_not_be_asked_for_is_not_followed() {
        let orders = TableName::new("public", "orders");
        assert!(!MirrorReader::new(TablePatterns::none(), TablePatterns::none()).request(&orders));
        let on_demand = TablePatterns::parse(["public.*", "!audit"]).expect("patterns");
        let reader = MirrorReader::new(TablePatterns::none(), on_demand);
        assert!(!reader.request(&TableName::new("public", "audit")) && reader.table_requests().is_empty());
        assert!(reader.request(&orders));
        assert_eq!(reader.table_requests(), BTreeSet::from([orders]));
    }

    #[test]
    fn a_request_stays_until_its_table_is_followed_and_no_longer() {
        let (orders, items) = (TableName::new("public", "orders"), TableName::new("public", "items"));
        let reader = MirrorReader::new(TablePatterns::none(), TablePatterns::parse(["*.*"]).expect("patterns"));
        assert!(reader.request(&orders) && reader.request(&items));
        let followed = TablePatterns::none().with(&BTreeSet::from([orders.clone()]));
        reader.follow(followed.clone());
        assert!(reader.request(&orders));
        assert_eq!(reader.table_requests(), BTreeSet::from([items.clone()]), "it is followed, or was lost");
        reader.follow(followed.with(&BTreeSet::from([items])));
        assert!(reader.table_requests().is_empty());
    }
}
