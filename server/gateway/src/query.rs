//! `Shapes.Query`: the rows of a shape once, at one position, out of the mirror.
//!
//! ```text
//! request ──▶ Query ──a thread──▶ Reading: cut of the mirror ──▶ rows that are in ──▶ batches ──▶ Querying ──▶ connection
//!   shape, order, limit               │ position, epoch        FirstRows (order)    (one waits)
//!                                     └──────────────────────────────────────────▶ token, behind the last row
//! ```
//!
//! **Exact.** All rows are read from one cut, which never changes; so are those of the tables that subqueries read, whose sets are made
//! before the first row is looked at. The token behind them is of the same position and of the epoch whose
//! mirror that was, so a subscription that goes on there receives each later change, and no earlier one.
//!
//! **Bounded.** Rows are handed on as they are read: a client that does not read has one batch waiting, and its thread stops. What it
//! holds then is the cut: a copy of what the mirror's overlay has of the table, and on the disk what has been overwritten since. Hence
//! a query has a time in which its rows must have been read, and there are so many of them at once and no more. With an order, the
//! first rows are held, up to a number and to a number of bytes. A mirror that is closed is let go of at once.
//!
//! It deliberately asks PostgreSQL nothing, and looks at every row that its index has: an order is not looked up.

mod error;
mod first_rows;
mod reading;
mod sending;

use std::{collections::VecDeque, sync::Arc};

use tidegate_model::AdHoc;
use tidegate_proto::v1::{self, order_by::Nulls, selection::What};
use tidegate_views::OrderBy;
use tokio::{sync::mpsc, task::JoinSet, time::sleep_until};

use crate::{
    mirror_snapshot::{Wanted, mirrored, narrowed},
    named_shapes::looked_up_now,
    selection::{Filter, Plan, PlanKey, Tables},
    shape::{self, ShapeFilter, ShapeRefusal},
    shared::Shared,
    source::Source,
    status::GatewayError,
};
pub(crate) use error::QueryError;
use reading::Reading;
use sending::Sending;

/// What is asked, checked against its table.
struct Query {
    source: Arc<Source>,
    /// Of the shape alone.
    plan: Arc<Plan>,
    wanted: Wanted,
    /// The tables that its subqueries read.
    inner: Vec<Wanted>,
    order: Vec<OrderBy>,
    /// None for all rows.
    limit: Option<usize>,
    row_types: bool,
}

impl Query {
    async fn new(shared: &Shared, request: v1::QueryShapeRequest) -> Result<Self, GatewayError> {
        let v1::QueryShapeRequest { source, shape, order_by, limit, row_types } = request;
        let source = shared.sources.get(&source)?;
        let order = order_by.into_iter().map(term).collect::<Result<Vec<_>, _>>()?;
        let max = shared.config.query_rows_max;
        let limit = usize::try_from(limit).ok().filter(|limit| *limit > 0);
        if !order.is_empty() && limit.is_none_or(|limit| limit > max) {
            return Err(QueryError::Limit { max }.into());
        }
        let filter = selected(shape.unwrap_or_default(), &source, shared).await?;
        filter.check_order(&order)?;
        shape::have_mirrored([&filter].into_iter(), &source, &shared.config).await?;
        let tables: Vec<_> = filter.tables().cloned().collect();
        let Some(mut inner) = mirrored(&source, &tables, &shared.config).await? else {
            let mirror = source.handle.mirror.as_ref();
            let is_followed = mirror.is_some_and(|mirror| mirror.request(filter.table()));
            let refusal = if is_followed { ShapeRefusal::Building } else { ShapeRefusal::Unmirrored };
            return Err(shape::refused(filter.table(), refusal));
        };
        let plan = source.plan(PlanKey::new(vec![Filter::Shape(filter)], 0, AdHoc::default()));
        let own = vec![inner.remove(0)];
        let wanted = narrowed(own, &plan, &source).await.pop().expect("one table was given");
        Ok(Query { source, plan, wanted, inner, order, limit, row_types })
    }
}

async fn selected(shape: v1::ShapeSelection, source: &Source, shared: &Shared) -> Result<ShapeFilter, GatewayError> {
    let (mut selections, _) = looked_up_now(&[What::Shape(shape)], &*source.handle.named_shapes).await?;
    let Some(What::Shape(shape)) = selections.pop() else { unreachable!("a shape is looked up as a shape") };
    let definition = shape::definition(shape, &shared.config)?;
    Tables::of(&source.handle).check_exists(&definition.table)?;
    ShapeFilter::new(definition, source).await
}

fn term(by: v1::OrderBy) -> Result<OrderBy, GatewayError> {
    let v1::OrderBy { expression, descending, nulls } = by;
    let nulls_first = match Nulls::try_from(nulls) {
        Ok(Nulls::Default) => None,
        Ok(Nulls::First) => Some(true),
        Ok(Nulls::Last) => Some(false),
        Err(_) => return Err(QueryError::Nulls { value: nulls }.into()),
    };
    Ok(OrderBy { expression, descending, nulls_first })
}

/// One call.
pub(crate) struct Querying {
    shared: Arc<Shared>,
    batches: mpsc::Receiver<Vec<v1::QueryShapeResponse>>,
    batch: VecDeque<v1::QueryShapeResponse>,
    /// The thread that reads. It ends soon after the receiver.
    reading: JoinSet<Result<(), GatewayError>>,
}

impl Querying {
    /// Checks what is asked, and begins to read.
    pub(crate) async fn open(shared: Arc<Shared>, request: v1::QueryShapeRequest) -> Result<Self, GatewayError> {
        if shared.drain.begun() {
            return Err(GatewayError::Draining);
        }
        let max = shared.config.queries_max;
        let permit = Arc::clone(&shared.queries).try_acquire_owned().map_err(|_| QueryError::Busy { max })?;
        let query = Query::new(&shared, request).await?;
        // One batch waits, and one more is being made or sent.
        let (sender, batches) = mpsc::channel(1);
        let mut reading = JoinSet::new();
        let runtime = tokio::runtime::Handle::current();
        let config = shared.config.clone();
        reading.spawn_blocking(move || {
            let _until_read = permit;
            let mirror = query.source.handle.mirror.clone().expect("the table is mirrored");
            let sending = Sending::new(sender, (runtime, config.query_duration_max), mirror.positions());
            Reading::new(query, mirror, config, sending).run()
        });
        Ok(Querying { shared, batches, batch: VecDeque::new(), reading })
    }

    /// The next response; None behind the last.
    pub(crate) async fn next(&mut self) -> Option<Result<v1::QueryShapeResponse, GatewayError>> {
        if self.batch.is_empty() {
            let drain = &self.shared.drain;
            let drained = async {
                drain.wait().await;
                sleep_until(drain.deadline()).await;
            };
            self.batch = tokio::select! {
                batch = self.batches.recv() => batch.unwrap_or_default().into(),
                () = drained => {
                    self.batches.close();
                    self.reading.detach_all();
                    return Some(Err(GatewayError::Draining));
                }
            };
        }
        if let Some(response) = self.batch.pop_front() {
            return Some(Ok(response));
        }
        match self.reading.join_next().await? {
            Ok(ended) => ended.err().map(Err),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}
