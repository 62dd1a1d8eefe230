//! The snapshots of a source as the gateway asks for them, carried out by its capture, once that runs; and what the catalog says of
//! the tables of which a part may be asked for.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream};
use tidegate_capture::{SnapshotError as CaptureSnapshotError, SnapshotRequests, SnapshotStatus, TableStatus};
use tidegate_control::JobState;
use tidegate_gateway::{Answer, Described, MalformedKey, SnapshotError, SnapshotStart, Snapshots, Statuses};
use tidegate_model::{ReplicaIdentity, Retry, SnapshotSpec, TableName};
use tidegate_postgres::{
    ConnectConfig, Session,
    snapshot::{
        Collation, PartColumn, PlanKind, SnapshotReadError, TablePlan, held_table_plan, malformed_key, part_columns,
    },
};
use tidegate_proto::v1;
use tidegate_views::{CollationFacts, ColumnFacts, EnumFacts, TableFacts};
use tokio::sync::watch;

/// Until a capture that has not started is asked again.
const RETRY: Duration = Duration::from_secs(1);

/// Forwards to the capture of a source.
pub(crate) struct CapturedSnapshots {
    pub(crate) requests: watch::Receiver<Option<SnapshotRequests>>,
    pub(crate) connect: ConnectConfig,
    pub(crate) publication: String,
}

impl CapturedSnapshots {
    fn requests(&self) -> Result<SnapshotRequests, SnapshotError> {
        let requests = self.requests.borrow().clone();
        requests.ok_or_else(|| SnapshotError::Later {
            detail: "the source has not been connected yet".to_owned(),
            retry_in: RETRY,
        })
    }
}

impl CapturedSnapshots {
    /// The table as it is now, over a session that need not last.
    async fn planned(&self, table: &TableName) -> Result<(Session, TablePlan), SnapshotReadError> {
        let session = Session::connect(&self.connect).await?;
        let plan = held_table_plan(&session, &self.publication, table).await?;
        Ok((session, plan))
    }
}

/// In the words of conditions. Rows are not looked into, so a column's field number does not matter.
fn facts(table: TableName, columns: Vec<PartColumn>, default: Collation) -> TableFacts {
    let collation = |collation: Collation| {
        let Collation { name, is_default, deterministic, is_c } = collation;
        CollationFacts { name, is_default, deterministic, is_c }
    };
    let column = |(field, column): (u32, PartColumn)| ColumnFacts {
        name: column.name,
        field,
        type_oid: column.base_type_oid,
        collation: column.collation.map(collation),
        enum_type: column.enum_type.map(|(schema, name, labels)| EnumFacts { schema, name, labels }),
    };
    TableFacts {
        schema: table.schema,
        name: table.table,
        columns: (1..).zip(columns).map(column).collect(),
        default_collation: collation(default),
    }
}

impl Snapshots for CapturedSnapshots {
    fn start(&self, spec: SnapshotSpec) -> Answer<'_, SnapshotStart> {
        Box::pin(async move {
            let started = self.requests()?.start(spec).await.map_err(refusal)?;
            Ok(SnapshotStart { snapshot: started.snapshot, after: started.after })
        })
    }

    fn describe(&self, table: TableName) -> Answer<'_, Described> {
        Box::pin(async move {
            let described = async {
                let (session, plan) = self.planned(&table).await?;
                let (columns, default) = part_columns(&session, &plan).await?;
                let relation = &plan.relation;
                let type_of = |column: &PartColumn| {
                    relation.columns.iter().find(|known| known.name == column.name).map_or(0, |known| known.type_oid)
                };
                let type_oids = columns.iter().map(type_of).collect();
                // Of a root, PostgreSQL calls old rows whole where only the leaf's identity says what they hold.
                let is_root = plan.kind == PlanKind::Root;
                let whole_old_rows = relation.replica_identity == ReplicaIdentity::Full && !is_root;
                let key = plan.key.into_iter().map(|column| column.name).collect();
                let type_names = columns.iter().map(|column| column.type_name.clone()).collect();
                Ok(Described { facts: facts(table, columns, default), key, type_oids, type_names, whole_old_rows })
            };
            described.await.map_err(|error: SnapshotReadError| refusal(error.into()))
        })
    }

    fn malformed_key(&self, table: TableName, keys: Vec<Vec<String>>) -> Answer<'_, Option<MalformedKey>> {
        Box::pin(async move {
            let looked = async {
                let (session, plan) = self.planned(&table).await?;
                let found = malformed_key(&session, &plan, &keys).await?;
                Ok(found.map(|found| MalformedKey { key: found.key, column: found.column }))
            };
            looked.await.map_err(|error: SnapshotReadError| refusal(error.into()))
        })
    }

    fn pause(&self, snapshot: u32) -> Answer<'_, ()> {
        Box::pin(async move { self.requests()?.pause(snapshot).await.map_err(refusal) })
    }

    fn resume(&self, snapshot: u32) -> Answer<'_, ()> {
        Box::pin(async move { self.requests()?.resume(snapshot).await.map_err(refusal) })
    }

    fn cancel(&self, snapshot: u32) -> Answer<'_, ()> {
        Box::pin(async move { self.requests()?.cancel(snapshot).await.map_err(refusal) })
    }

    fn statuses(&self) -> Statuses {
        let Ok(requests) = self.requests() else {
            return stream::once(std::future::ready(Vec::new())).boxed();
        };
        let current = |statuses: &Arc<Vec<SnapshotStatus>>| statuses.iter().map(status).collect::<Vec<_>>();
        stream::unfold((requests.statuses(), true), move |(mut statuses, is_first)| async move {
            if !is_first {
                statuses.changed().await.ok()?;
            }
            let shown = current(&statuses.borrow_and_update());
            Some((shown, (statuses, false)))
        })
        .boxed()
    }
}

fn refusal(error: CaptureSnapshotError) -> SnapshotError {
    if let CaptureSnapshotError::Unknown(snapshot) = error {
        return SnapshotError::Unknown(snapshot);
    }
    let detail = error.to_string();
    match error.retry() {
        Retry::After(retry_in) => SnapshotError::Later { detail, retry_in },
        Retry::Never | Retry::Reset => SnapshotError::Refused { detail },
    }
}

fn status(status: &SnapshotStatus) -> v1::SnapshotStatus {
    use v1::snapshot_status::State;
    let state = match (status.state, status.after, status.detail.is_empty()) {
        (JobState::Running, None, _) => State::Queued,
        (JobState::Running, Some(_), true) => State::Running,
        (JobState::Running, Some(_), false) => State::Waiting,
        (JobState::Paused, _, _) => State::Paused,
        (JobState::Done, _, _) => State::Done,
        (JobState::Cancelled, _, _) => State::Cancelled,
        (JobState::Failed, _, _) => State::Failed,
    };
    let table = |table: &TableStatus| v1::SnapshotTable {
        table: table.name.to_string(),
        state: if table.is_done { State::Done } else { state } as i32,
        rows_read: table.row_count,
        rows_estimated: table.row_count_estimated,
        r#where: table.part.condition.as_deref().unwrap_or_default().to_owned(),
        keys: table.part.key_count,
    };
    v1::SnapshotStatus {
        snapshot: status.snapshot,
        source: String::new(),
        state: state as i32,
        detail: status.detail.clone(),
        tables: status.tables.iter().map(table).collect(),
        rows_read: status.tables.iter().map(|table| table.row_count).sum(),
        rows_estimated: status.tables.iter().map(|table| table.row_count_estimated).sum(),
        rows_per_second: status.rows_per_second,
        started: Some(timestamp(status.created_us)),
        ended: status.ended_us.map(timestamp),
        begin: status.after.map(|after| after.to_string()).unwrap_or_default(),
        new_tables: status.new_tables,
        ad_hoc: status.ad_hoc,
    }
}

pub(crate) fn timestamp(us: i64) -> prost_types::Timestamp {
    let nanos = i32::try_from(us.rem_euclid(1_000_000) * 1_000).expect("less than a second");
    prost_types::Timestamp { seconds: us.div_euclid(1_000_000), nanos }
}
