//! How a snapshot comes to be: recorded, where it starts by itself, then planned, and followed by the stream.
//!
//! Invariant: a table is planned only when the past of its membership in the publication is settled. Who wrote to it before it
//! joined may not be in the stream, and must have ended, so that every chunk sees it.
//! Nothing is read before the rows of partitions are decoded as what they were planned as (`partitions`).

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tidegate_control::SnapshotJob;
use tidegate_model::{Epoch, TableName};
use tidegate_postgres::{
    Session, keeps_partitions, memberships,
    snapshot::{TablePlan, check_part, held_table_plan},
};
use tokio::sync::{mpsc, oneshot};
use tracing::info;

use super::{
    super::{
        errand::{Done, Planning, end},
        label::Label,
        order::{Begun, Order},
        pass::Pass,
        reader::Planned,
        requests::{NewTables, SnapshotError},
        touched::Covers,
    },
    Context, Coordinator,
};
use crate::{
    CaptureError,
    promises::{Promised, Todo},
    table::TableCodec,
};

/// Until rows of partitions are sent as what they are now. Then it is tried again, and said why.
const SETTLING: Duration = Duration::from_secs(10);

impl Coordinator {
    /// Records a snapshot of tables that have joined the publication, which then runs like any other.
    pub(super) async fn start_new(&mut self, new: NewTables, epoch: Option<Epoch>) -> Result<Promised, SnapshotError> {
        if epoch != Some(new.epoch) || !self.is_loaded {
            return Err(SnapshotError::NotConnected);
        }
        let NewTables { tables, epoch, promised, line } = new;
        let read_by = |snapshot| promised.with(Todo::ReadBy(snapshot), &line);
        let content = |snapshot| read_by(snapshot).content.to_string();
        let at_least = self.passes.keys().max().copied().unwrap_or(0);
        let (control, source) = (&self.context.control, &self.context.source);
        let job = control.create_snapshot_of_new(source, (epoch, at_least), &tables, (promised.oid, &content)).await?;
        info!(%source, snapshot = job.snapshot, first = %tables[0], tables = tables.len(), "a snapshot of new tables starts");
        let recorded = read_by(job.snapshot);
        self.passes.insert(job.snapshot, Pass::new(job, None));
        Ok(recorded)
    }

    /// Has a snapshot planned, and followed by the stream.
    pub(super) fn begin(&mut self, snapshot: u32) {
        let Some(pass) = self.passes.get(&snapshot) else { return };
        let (context, orders) = (Arc::clone(&self.context), self.orders.clone());
        let (job, keyed_only) = pass.to_plan();
        let wanted = Wanted { job, keyed_only, beside: self.beside(pass) };
        self.tasks.spawn(async move {
            let begun = plan(&context, &orders, wanted).await;
            Done::Begun { snapshot, begun: begun.map_err(Box::new) }
        });
    }

    /// Tables of other snapshots that are under way, of which there are subscribers who receive both.
    fn beside(&self, pass: &Pass) -> BTreeMap<TableName, u32> {
        let is_beside = |other: &&Pass| {
            let is_under_way = other.after().is_some() || (other.is_beginning() && other.number() < pass.number());
            other.number() != pass.number() && is_under_way && (other.is_for_others() || pass.is_for_others())
        };
        let others = self.passes.values().filter(is_beside).filter(|_| pass.after().is_none());
        others.flat_map(|other| other.to_plan().0.tables.into_iter().map(|name| (name, other.number()))).collect()
    }
}

/// A snapshot that is to begin.
struct Wanted {
    job: SnapshotJob,
    /// A table without a key is refused.
    keyed_only: bool,
    /// A table without a key waits until this snapshot has ended: who receives both would count its rows twice.
    beside: BTreeMap<TableName, u32>,
}

/// Plans the tables, and lets the stream follow them.
async fn plan(context: &Context, orders: &mpsc::Sender<Order>, wanted: Wanted) -> Result<Planning, SnapshotError> {
    let Wanted { job, keyed_only, beside } = wanted;
    let (snapshot, names) = (job.snapshot, &job.tables);
    // What is settled is known from the first connection on.
    let mut promised = context.promised.clone();
    promised.wait_for(|promised| promised.oid != 0).await.map_err(|_| SnapshotError::NotConnected)?;
    let session = Session::connect(&context.connect).await?;
    let mut plans = Vec::with_capacity(names.len());
    for name in names {
        let mut plan = held_table_plan(&session, &context.publication, name).await?;
        if plan.key.is_empty() {
            if keyed_only || job.parts.contains_key(name) {
                return Err(SnapshotError::Keyless(name.clone()));
            }
            if let Some(&snapshot) = beside.get(name) {
                return Err(SnapshotError::Beside { table: name.clone(), snapshot });
            }
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
    if keeps_partitions(session.server_version()) {
        // What is written from now on is decoded as what the plans say.
        let settled = tokio::time::timeout(SETTLING, context.partitions.settled());
        settled.await.map_err(|_elapsed| SnapshotError::PartitionsChanging)?;
    }
    let tables = names.iter().cloned().zip(plans.iter().map(|plan| plan.relation.clone())).collect();
    let (reply, answer) = oneshot::channel();
    let covers = names.iter().map(|name| Covers::of(job.parts.get(name))).collect();
    let order = Order::Begin { snapshot, epoch: job.epoch, label: Label::of(&job), tables, covers, reply };
    orders.send(order).await.map_err(|_| SnapshotError::NotConnected)?;
    let Begun { after, codecs, beside } = answer.await.map_err(|_| SnapshotError::NotConnected)??;
    if let Some((table, snapshot)) = beside {
        return Err(SnapshotError::Beside { table, snapshot });
    }
    let planned = |((plan, codec), name): ((TablePlan, Option<Arc<TableCodec>>), &TableName)| {
        let codec = codec.ok_or_else(|| SnapshotError::NotFollowed(name.clone()))?;
        Ok(Arc::new(Planned { plan, codec, part: job.parts.get(name).cloned() }))
    };
    let plans: Vec<Arc<Planned>> =
        plans.into_iter().zip(codecs).zip(names).map(planned).collect::<Result<_, SnapshotError>>()?;
    // A publication that leaves a part of the key out: what is left of it tells no rows apart.
    if let Some(at) = plans.iter().position(|planned| planned.plan.key.is_empty() && !planned.is_keyless()) {
        let error = SnapshotError::KeyLeftOut(names[at].clone());
        end((orders.clone(), context.durable.clone()), snapshot, error.to_string()).await;
        return Err(error);
    }
    Ok(Planning { after, plans })
}
