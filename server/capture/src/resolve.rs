//! From a relation of the stream to a table that can be encoded: asks the catalog for what the stream does not say, and the
//! control database for numbers.
//!
//! The stream says the columns' names and types as they were when the change was made; the catalog, as they are now. What the
//! catalog no longer has is encoded as text, so that a change never waits for a table that is gone. A column's number is taken
//! from it only where it fits the stream whole, so that a column is never mistaken for another that has taken its name.
//! What old rows of a root hold is decided by its partitions, of which the stream says nothing: the row type states what they all have.
//! The catalog may be behind, too: PostgreSQL sends a transaction before it makes it visible. It is waited for then, a while.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use prost::Message as _;
use tidegate_control::{ColumnRequest, Control, RowTypeNumbers, RowTypeRequest};
use tidegate_model::{Relation, RelationColumn, ReplicaIdentity, SourceName, TableName, TablePatterns};
use tidegate_postgres::{
    CatalogColumn, OldRows, Session, TypeInfo, old_rows_of_full, relation_columns, type_info, visibility,
};
use tidegate_proto::v1;
use tidegate_schema::{ColumnSpec, RowDecoder, RowEncoder, RowTypeSpec, TypeShape, ValueKind};
use tokio::time::{Instant, sleep};

use crate::{
    CaptureError,
    numbers::{Numbers, without_modifier},
    table::{Followed, TableCodec},
};

/// How long a transaction that has been sent is waited for until it is visible, and between two looks. With a synchronous standby that
/// is away it may take for ever.
const VISIBLE_WITHIN: Duration = Duration::from_secs(3);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Resolves the relations of one source.
pub(crate) struct Resolver {
    pub(crate) source: SourceName,
    pub(crate) tables: TablePatterns,
    pub(crate) control: Control,
    pub(crate) numbers: Numbers,
    /// What was last asked of the control database for each table over this connection, and its answer: PostgreSQL describes a table
    /// again in each transaction that it sends in progress, and asking is a transaction that is written to a disk.
    pub(crate) asked: HashMap<u32, (RowTypeRequest, RowTypeNumbers)>,
}

impl Resolver {
    /// A connection begins: another server may have asked since.
    pub(crate) fn connected(&mut self) {
        self.asked.clear();
    }

    /// How the relation is treated, whose rows a transaction has written that was sent whole, if any.
    ///
    /// # Errors
    /// Catalog or control database cannot be asked.
    pub(crate) async fn resolve(
        &mut self,
        session: &Session,
        relation: &Relation,
        xid: Option<u32>,
    ) -> Result<Followed, CaptureError> {
        let name = TableName::new(relation.schema.clone(), relation.table.clone());
        if !self.tables.matches(&name) {
            return Ok(Followed::No);
        }
        let mut catalog = relation_columns(session, relation.oid).await?;
        if !fits(relation, &catalog) && until_visible(session, xid).await? {
            catalog = relation_columns(session, relation.oid).await?;
        }
        let old_rows = match relation.replica_identity {
            ReplicaIdentity::Full => old_rows_of_full(session, relation.oid).await?,
            ReplicaIdentity::Default | ReplicaIdentity::Index | ReplicaIdentity::Nothing => OldRows::AsCalled,
        };
        let relation = &as_written(relation, &catalog, old_rows);
        let type_oids: HashSet<u32> = relation.columns.iter().map(|column| column.type_oid).collect();
        let type_oids: Vec<u32> = type_oids.into_iter().collect();
        let types: HashMap<u32, TypeInfo> =
            type_info(session, &type_oids).await?.into_iter().map(|info| (info.oid, info)).collect();
        let mut columns = describe_columns(relation, &catalog, &types);
        let request = self.row_type_request(&name, relation, &columns);
        let numbers = self.row_type_numbers(relation.oid, request).await?;
        for (column, field) in columns.iter_mut().zip(&numbers.fields) {
            column.field = *field;
        }
        let spec = RowTypeSpec {
            row_type: numbers.row_type,
            source: self.source.clone(),
            name,
            table_oid: relation.oid,
            identity: identity(relation, &columns),
            columns,
        };
        let proto = spec.to_proto();
        let announcement = Bytes::from(proto.encode_to_vec());
        self.numbers.learn(proto, &numbers.names)?;
        Ok(Followed::Yes(Arc::new(TableCodec {
            row_type: spec.row_type,
            table_oid: relation.oid,
            key: spec.columns.iter().filter(|column| column.key).map(|column| column.field).collect(),
            old_rows,
            decoder: RowDecoder::new(&spec.columns),
            encoder: RowEncoder::new(&spec.columns),
            fields: numbers.fields,
            announcement,
        })))
    }

    async fn row_type_numbers(
        &mut self,
        table_oid: u32,
        request: RowTypeRequest,
    ) -> Result<RowTypeNumbers, CaptureError> {
        if let Some((_, numbers)) = self.asked.get(&table_oid).filter(|(asked, _)| request.is_of(asked)) {
            return Ok(numbers.clone());
        }
        let numbers = self.control.row_type(&self.source, &request).await?;
        self.asked.insert(table_oid, (request, numbers.clone()));
        Ok(numbers)
    }

    fn row_type_request(&self, name: &TableName, relation: &Relation, columns: &[ColumnSpec]) -> RowTypeRequest {
        let proven: Vec<_> = columns.iter().map(|column| self.numbers.proven(name, relation.oid, column)).collect();
        // What would be proven of two columns is proven of none.
        let is_one = |field: &u32| proven.iter().flatten().filter(|other| *other == field).count() == 1;
        let request = |(column, proven): (&ColumnSpec, &Option<u32>)| ColumnRequest {
            name: column.name.clone(),
            type_key: type_key(column),
            field: proven.filter(is_one),
        };
        let described: Vec<_> = columns
            .iter()
            .map(|column| (&column.name, &column.type_name, column.type_oid, column.codec, column.key))
            .collect();
        RowTypeRequest {
            name: name.clone(),
            fingerprint: format!("{} {:?} {described:?}", relation.oid, relation.replica_identity),
            columns: columns.iter().zip(&proven).map(request).collect(),
            used: self.numbers.used(name),
        }
    }
}

/// The relation with the identity that all of its rows are written with.
fn as_written(relation: &Relation, catalog: &[CatalogColumn], old_rows: OldRows) -> Relation {
    let mut written = relation.clone();
    let in_key = |column: &RelationColumn| {
        catalog.iter().any(|now| (&now.name, now.type_oid, now.in_primary_key) == (&column.name, column.type_oid, true))
    };
    match old_rows {
        OldRows::AsCalled | OldRows::Whole => {}
        OldRows::PrimaryKey | OldRows::Less => {
            written.replica_identity = ReplicaIdentity::Default;
            for column in &mut written.columns {
                column.identity = old_rows == OldRows::PrimaryKey && in_key(column);
            }
        }
    }
    written
}

/// Waits until the session sees the transaction, and no longer than a while; true where it does. False at once where there is none.
async fn until_visible(session: &Session, xid: Option<u32>) -> Result<bool, CaptureError> {
    let Some(xid) = xid else { return Ok(false) };
    let deadline = Instant::now() + VISIBLE_WITHIN;
    while !visibility(session).await?.sees_xid(xid) {
        if Instant::now() >= deadline {
            return Ok(false);
        }
        sleep(LOOK_AGAIN).await;
    }
    Ok(true)
}

fn describe_columns(relation: &Relation, catalog: &[CatalogColumn], types: &HashMap<u32, TypeInfo>) -> Vec<ColumnSpec> {
    let by_name: HashMap<&str, &CatalogColumn> = catalog.iter().map(|column| (column.name.as_str(), column)).collect();
    let fits = fits(relation, catalog);
    let describe = |column: &tidegate_model::RelationColumn| {
        let now = by_name.get(column.name.as_str()).filter(|now| now.type_oid == column.type_oid);
        let info = types.get(&column.type_oid);
        ColumnSpec {
            name: column.name.clone(),
            attnum: now.filter(|_| fits).map_or(0, |now| now.attnum),
            type_oid: column.type_oid,
            type_name: match (now, info) {
                (Some(now), _) => now.type_name.clone(),
                (None, Some(info)) => info.name.clone(),
                (None, None) => format!("unknown type {}", column.type_oid),
            },
            codec: match (now, info) {
                (Some(now), _) => ValueKind::of(now.base_type_oid, shape(now.shape)),
                (None, Some(info)) => ValueKind::of(column.type_oid, shape(info.shape)),
                (None, None) => ValueKind::TEXT,
            },
            key: is_key(relation, column.identity, now.copied()),
            field: 0,
        }
    };
    relation.columns.iter().map(describe).collect()
}

/// The key is the primary key where the stream carries it, else the replica identity's index.
fn is_key(relation: &Relation, identity: bool, now: Option<&CatalogColumn>) -> bool {
    match relation.replica_identity {
        ReplicaIdentity::Default | ReplicaIdentity::Index => identity,
        ReplicaIdentity::Full => now.is_some_and(|now| now.in_primary_key),
        ReplicaIdentity::Nothing => false,
    }
}

fn identity(relation: &Relation, columns: &[ColumnSpec]) -> v1::ReplicaIdentity {
    match relation.replica_identity {
        ReplicaIdentity::Full => v1::ReplicaIdentity::Full,
        ReplicaIdentity::Default | ReplicaIdentity::Index if columns.iter().any(|column| column.key) => {
            v1::ReplicaIdentity::Key
        }
        ReplicaIdentity::Default | ReplicaIdentity::Index | ReplicaIdentity::Nothing => v1::ReplicaIdentity::Nothing,
    }
}

/// Does the catalog have these columns, in this order, and no other that would be streamed? A column list of the publication
/// cannot be told from a catalog that is ahead, and does not fit.
fn fits(relation: &Relation, catalog: &[CatalogColumn]) -> bool {
    let mut announced = relation.columns.iter().peekable();
    for now in catalog {
        let is_next = announced.next_if(|column| column.name == now.name && column.type_oid == now.type_oid).is_some();
        if !is_next && !now.generated {
            return false;
        }
    }
    announced.next().is_none()
}

/// The catalog's answer in the codec's words.
fn shape(shape: tidegate_postgres::TypeShape) -> TypeShape {
    use tidegate_postgres::TypeShape as Catalog;
    match shape {
        Catalog::Base | Catalog::Pseudo => TypeShape::Base,
        Catalog::Domain { base_oid } => TypeShape::Domain { base_oid },
        Catalog::Enum => TypeShape::Enum,
        Catalog::Composite => TypeShape::Composite,
        Catalog::Array { element_oid, delimiter } => TypeShape::Array { element_oid, delimiter },
        Catalog::Range { .. } => TypeShape::Range,
        Catalog::Multirange => TypeShape::Multirange,
    }
}

/// The type without its modifier, and the encoding.
fn type_key(column: &ColumnSpec) -> String {
    format!("{} as {:?}", without_modifier(&column.type_name), column.codec)
}
