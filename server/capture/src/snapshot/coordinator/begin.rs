//! How a snapshot comes to be: recorded, where it starts by itself, then planned, and followed by the stream.
//!
//! Invariant: a table is planned only when the past of its membership in the publication is settled. Who wrote to it before it
//! joined may not be in the stream, and must have ended, so that every chunk sees it.

use std::sync::Arc;

use tidegate_control::SnapshotJob;
use tidegate_model::{Epoch, Position, TableName};
use tidegate_postgres::{
    Session, memberships,
    snapshot::{TablePlan, check_part, table_plan},
};
use tokio::sync::{mpsc, oneshot};
use tracing::info;

use super::{
    super::{
        errand::{Planning, end},
        label::Label,
        order::{Begun, Order},
        pass::Pass,
        reader::Planned,
        requests::{NewTables, SnapshotError},
        touched::Covers,
    },
    Context, Coordinator,
};
use crate::{CaptureError, table::TableCodec};

impl Coordinator {
    /// Records a snapshot of tables that have joined the publication, which then runs like any other.
    pub(super) async fn start_new(&mut self, new: NewTables, epoch: Option<Epoch>) -> Result<(), SnapshotError> {
        if epoch != Some(new.epoch) || !self.is_loaded {
            return Err(SnapshotError::NotConnected);
        }
        let NewTables { tables, epoch, promised: (oid, content) } = new;
        let at_least = self.passes.keys().max().copied().unwrap_or(0);
        let (control, source) = (&self.context.control, &self.context.source);
        let job = control.create_snapshot_of_new(source, (epoch, at_least), &tables, (oid, &content)).await?;
        info!(%source, snapshot = job.snapshot, first = %tables[0], tables = tables.len(), "a snapshot of new tables starts");
        self.passes.insert(job.snapshot, Pass::new(job, None));
        Ok(())
    }
}

/// Plans the tables, and lets the stream follow them. `keyed_only`: one without a key is refused.
pub(super) async fn begin(
    context: &Context,
    orders: &mpsc::Sender<Order>,
    (job, keyed_only): &(SnapshotJob, bool),
) -> Result<Planning, SnapshotError> {
    let (snapshot, names) = (job.snapshot, &job.tables);
    // What is settled is known from the first connection on.
    let mut promised = context.promised.clone();
    promised.wait_for(|promised| promised.oid != 0).await.map_err(|_| SnapshotError::NotConnected)?;
    let session = Session::connect(&context.connect).await?;
    let mut plans = Vec::with_capacity(names.len());
    for name in names {
        let mut plan = table_plan(&session, &context.publication, name).await?;
        if plan.key.is_empty() && (*keyed_only || job.parts.contains_key(name)) {
            return Err(SnapshotError::Keyless(name.clone()));
        }
        let members =
            memberships(&session, &context.publication, plan.relation.oid).await.map_err(CaptureError::from)?;
        if !promised.borrow().are_settled(&members) {
            return Err(SnapshotError::Joining(name.clone()));
        }
        if let Some(part) = job.parts.get(name) {
            check_part(&session, &plan, part).await?;
            plan.condition = part.condition().map(str::to_owned);
        }
        plans.push(plan);
    }
    let tables = names.iter().cloned().zip(plans.iter().map(|plan| plan.relation.clone())).collect();
    let (reply, answer) = oneshot::channel();
    let covers = names.iter().map(|name| Covers::of(job.parts.get(name))).collect();
    let order = Order::Begin { snapshot, label: Label::of(job), tables, covers, reply };
    orders.send(order).await.map_err(|_| SnapshotError::NotConnected)?;
    let Begun { after, codecs } = answer.await.map_err(|_| SnapshotError::NotConnected)??;
    let planned = |((plan, codec), name): ((TablePlan, Option<Arc<TableCodec>>), &TableName)| {
        let codec = codec.ok_or_else(|| SnapshotError::NotFollowed(name.clone()))?;
        Ok(Arc::new(Planned { plan, codec, part: job.parts.get(name).cloned() }))
    };
    let plans: Vec<Arc<Planned>> =
        plans.into_iter().zip(codecs).zip(names).map(planned).collect::<Result<_, SnapshotError>>()?;
    // A publication that leaves a part of the key out: what is left of it tells no rows apart.
    if let Some(at) = plans.iter().position(|planned| planned.plan.key.is_empty() && !planned.is_keyless()) {
        let error = SnapshotError::Keyless(names[at].clone());
        end(orders.clone(), snapshot, error.to_string()).await;
        return Err(error);
    }
    Ok(Planning { after, plans })
}
