//! A table as pgoutput's Relation message describes it.

/// `pg_class.relreplident`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReplicaIdentity {
    /// `d`: the primary key, if there is a usable one.
    Default,
    /// `n`
    Nothing,
    /// `f`
    Full,
    /// `i`
    Index,
}

/// A table's description, valid for the messages that follow it on the same connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Relation {
    /// `pg_class.oid`.
    pub oid: u32,
    /// Exact schema name.
    pub schema: String,
    /// Exact table name.
    pub table: String,
    /// As it was when the changes that follow were made.
    pub replica_identity: ReplicaIdentity,
    /// In the order of the tuples that follow; dropped and unpublished columns are not in it.
    pub columns: Vec<RelationColumn>,
}

/// A column of a [`Relation`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RelationColumn {
    /// Exact name.
    pub name: String,
    /// Type OID in the source database.
    pub type_oid: u32,
    /// `atttypmod`, or -1.
    pub type_modifier: i32,
    /// The stream says: part of the replica identity. With `Full`, every column is.
    pub identity: bool,
}
