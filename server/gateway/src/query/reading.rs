//! Reads the rows of a query, on a thread that may wait.
//!
//! Invariant: what is given out is of one cut. Where the catalog has to be asked again amid the rows, it is begun anew, unless something
//! has been given out already.

use std::{collections::HashMap, sync::Arc};

use tidegate_model::{Epoch, Position, Token};
use tidegate_proto::v1::{self, query_shape_response::What};
use tidegate_schema::{CUT_BYTES, RowType, wire::Fields};
use tidegate_store::{MirrorError, MirrorReader, MirrorRow, Scan};
use tidegate_views::Order;
use tokio::time::timeout;

use super::{Query, QueryError, first_rows::FirstRows, sending::Sending};
use crate::{
    config::GatewayConfig,
    opening::{TRIES, not_ready, renewed},
    projection::MalformedChange,
    selection::{Deliver, Filter, Plan, Routing},
    sets::SetsOnce,
    shape::{self, ShapeFilter, change::WholeChange, route::ShapeRoute},
    status::GatewayError,
};

/// Values of a row that stand in one response, in bytes; with names and framing it stays under about 1 MiB.
const ROW_BYTES_MAX: usize = (1 << 20) - (64 << 10);

pub(super) struct Reading {
    query: Query,
    mirror: MirrorReader,
    config: GatewayConfig,
    sending: Sending,
    /// Of the shape's subqueries.
    sets: SetsOnce,
    /// By row type.
    orders: HashMap<u32, Order>,
    announced: Vec<u32>,
    row_count: u64,
}

/// A row with what is sent of it.
struct Found {
    routing: Arc<Routing>,
    row: MirrorRow,
}

impl Reading {
    pub(super) fn new(query: Query, mirror: MirrorReader, config: GatewayConfig, sending: Sending) -> Self {
        let (orders, announced) = (HashMap::new(), Vec::new());
        let sets = unread_sets(&query);
        Reading { query, mirror, config, sending, sets, orders, announced, row_count: 0 }
    }

    /// To the end.
    pub(super) fn run(mut self) -> Result<(), GatewayError> {
        loop {
            let (epoch, scans) = self.cut()?;
            let failure = match self.read(epoch, scans) {
                Err(GatewayError::ShapeFailed(failure)) if failure.is_of_old_facts() => failure,
                ended => return ended,
            };
            let (source, plan) = (Arc::clone(&self.query.source), Arc::clone(&self.query.plan));
            self.query.plan = match self.sending.wait_for(renewed(&source, &plan))? {
                Some(plan) => plan,
                None => return Err(GatewayError::ShapeFailed(failure)),
            };
            if self.sending.has_sent() {
                return Err(QueryError::Changed.into());
            }
            self.sending.start_over();
            self.sets = unread_sets(&self.query);
            (self.orders, self.announced, self.row_count) = (HashMap::new(), Vec::new(), 0);
        }
    }

    /// The rows as they are at one position, which is not before what the server had when it was asked, and behind them those that the
    /// subqueries read; and its epoch.
    fn cut(&self) -> Result<(Epoch, Vec<Scan>), GatewayError> {
        let source = &self.query.source;
        let head = source.handle.store.head();
        for _ in 0..TRIES {
            let now = *head.borrow();
            let Some(epoch) = now.epoch else { break };
            let mut positions = self.mirror.positions();
            let there = positions.wait_for(|position| position.lsn >= now.complete.lsn);
            let reached = self.sending.wait_for(async { timeout(self.config.first_epoch_wait, there).await.is_ok() });
            if !reached {
                break;
            }
            let rows = self.query.wanted.rows(&self.mirror);
            let all = rows.map(|rows| [rows].into_iter().chain(self.sets.rows(&self.query.inner)));
            match all.and_then(|all| self.mirror.scans(all)) {
                // An epoch does not come again, and a mirror is closed before the next one begins.
                Ok(scans)
                    if scans.iter().all(|scan| scan.position().lsn >= now.complete.lsn)
                        && head.borrow().epoch == Some(epoch) =>
                {
                    return Ok((epoch, scans));
                }
                Ok(_) | Err(MirrorError::Closed | MirrorError::IndexNotComplete) => {}
                Err(error) => return Err(GatewayError::Mirror(error)),
            }
        }
        Err(not_ready(source))
    }

    fn read(&mut self, epoch: Epoch, mut scans: Vec<Scan>) -> Result<(), GatewayError> {
        let scan = scans.remove(0);
        let position = scan.position();
        let sending = &mut self.sending;
        self.sets.read(scans, &self.query.source, || sending.goes_on())?;
        let begin = v1::QueryBegin { position: position.to_string(), source: self.query.source.name().to_string() };
        self.sending.push(What::Begin(begin))?;
        match self.query.limit {
            Some(limit) if !self.query.order.is_empty() => self.read_first(scan, limit)?,
            limit => self.read_on(scan, limit)?,
        }
        let token = Token { prefix: self.query.plan.key.prefix(epoch), position }.to_string();
        self.sending.push(What::End(v1::QueryEnd { token, row_count: self.row_count }))?;
        self.sending.flush()
    }

    /// Rows as they stand.
    fn read_on(&mut self, mut scan: Scan, limit: Option<usize>) -> Result<(), GatewayError> {
        let position = scan.position();
        let mut left = limit.unwrap_or(usize::MAX);
        while left > 0
            && let Some(row) = scan.next().transpose().map_err(GatewayError::Mirror)?
        {
            self.sending.goes_on()?;
            let routing = self.routing(&row)?;
            let Some(route) = route_of(&routing) else { continue };
            if self.has(route, &row, position)? {
                left -= 1;
                self.send(&Found { routing, row })?;
            }
        }
        Ok(())
    }

    /// The first rows of the order.
    fn read_first(&mut self, mut scan: Scan, limit: usize) -> Result<(), GatewayError> {
        let position = scan.position();
        let max = self.config.query_bytes_max;
        let mut first = FirstRows::new(limit, max);
        while let Some(row) = scan.next().transpose().map_err(GatewayError::Mirror)? {
            self.sending.goes_on()?;
            let routing = self.routing(&row)?;
            let Some(route) = route_of(&routing) else { continue };
            if !self.has(route, &row, position)? {
                continue;
            }
            let rank = route.rank(self.order(&routing)?, &reading(&row), position);
            let rank = rank.map_err(GatewayError::ShapeFailed)?;
            if first.admits(&rank) {
                // Only what is sent is held.
                let kept = project(route, &row).map_err(|_| damaged(position))?;
                let byte_count = kept.len();
                let row = MirrorRow { row: kept.into(), ..row };
                if !first.take(rank, (Found { routing, row }, byte_count)) {
                    return Err(QueryError::TooLarge { max }.into());
                }
            }
        }
        // Nothing of the mirror is held while the client reads, and no sets.
        drop(scan);
        self.sets = unread_sets(&self.query);
        first.into_rows().try_for_each(|found| self.send(&found))
    }

    fn has(&self, route: &ShapeRoute, row: &MirrorRow, position: Position) -> Result<bool, GatewayError> {
        let members = self.sets.members(route.predicate().subqueries());
        route.has_given(row, &members, position).map_err(GatewayError::ShapeFailed)
    }

    fn routing(&self, row: &MirrorRow) -> Result<Arc<Routing>, GatewayError> {
        self.query.plan.routing(row.row_type, &self.query.source.handle.store)
    }

    fn order(&mut self, routing: &Routing) -> Result<&Order, GatewayError> {
        let row_type = routing.row_type.as_ref().expect("a row has a row type");
        let number = row_type.proto().row_type;
        if !self.orders.contains_key(&number) {
            let order = shape_of(&self.query.plan).order(&self.query.order, row_type)?;
            self.orders.insert(number, order);
        }
        Ok(&self.orders[&number])
    }

    fn send(&mut self, Found { routing, row }: &Found) -> Result<(), GatewayError> {
        let damaged = |_| GatewayError::Damaged { at: self.query.wanted.name.to_string() };
        let (Some(row_type), Some(route)) = (&routing.row_type, route_of(routing)) else { return Ok(()) };
        let mut announcement = None;
        if self.query.row_types && !self.announced.contains(&row.row_type) {
            let encoded = routing.announcements[0].clone();
            announcement = Some(prost::Message::decode(encoded).map_err(|_| damaged(MalformedChange))?);
        }
        let rows = responses(row, route, row_type).map_err(damaged)?;
        if let Some(announcement) = announcement {
            self.announced.push(row.row_type);
            self.sending.push(What::RowType(announcement))?;
        }
        let byte_count = rows.iter().map(prost::Message::encoded_len).sum::<usize>();
        self.query.source.metrics.sent(1, byte_count as u64);
        self.row_count += 1;
        rows.into_iter().try_for_each(|row| self.sending.push(What::Row(row)))
    }
}

/// Of its shape's subqueries.
fn unread_sets(query: &Query) -> SetsOnce {
    SetsOnce::of(shape_of(&query.plan), &query.source)
}

fn shape_of(plan: &Plan) -> &ShapeFilter {
    plan.key.filters().first().and_then(Filter::shape).expect("the plan is of a shape")
}

fn route_of(routing: &Routing) -> Option<&ShapeRoute> {
    match routing.deliver.first() {
        Some(Deliver::Shape(route)) => Some(route),
        Some(Deliver::Skip | Deliver::Whole | Deliver::Columns(_)) | None => None,
    }
}

fn reading(row: &MirrorRow) -> WholeChange<'_> {
    WholeChange::reading(row.row_type, &row.row, &row.missing)
}

fn project(route: &ShapeRoute, row: &MirrorRow) -> Result<Vec<u8>, MalformedChange> {
    shape::change::project(&row.row, route.fields()).map(std::borrow::Cow::into_owned)
}

/// The row in as many responses as it needs: what fits, and then the rest.
fn responses(row: &MirrorRow, route: &ShapeRoute, row_type: &RowType) -> Result<Vec<v1::QueryRow>, MalformedChange> {
    let projected = shape::change::project(&row.row, route.fields())?;
    let (mut kept, mut rest, mut omitted) = (Vec::new(), Vec::new(), Vec::new());
    for field in Fields::new(&projected) {
        let field = field?;
        if kept.len() + field.whole.len() <= ROW_BYTES_MAX {
            kept.extend_from_slice(field.whole);
        } else {
            rest.extend_from_slice(field.whole);
            omitted.extend(row_type.column_by_field(field.number).map(|column| column.name.clone()));
        }
    }
    let any = prost_types::Any { type_url: format!("type.googleapis.com/{}", row_type.proto().message), value: kept };
    let first = v1::QueryRow {
        row_type: row.row_type,
        row: Some(any),
        omitted,
        continues: !rest.is_empty(),
        ..v1::QueryRow::default()
    };
    let pieces = rest.chunks(CUT_BYTES).map(bytes::Bytes::copy_from_slice);
    let mut rows: Vec<_> = std::iter::once(first)
        .chain(pieces.map(|rest| v1::QueryRow { rest, continues: true, ..v1::QueryRow::default() }))
        .collect();
    if let Some(last) = rows.last_mut() {
        last.continues = false;
    }
    Ok(rows)
}

fn damaged(position: Position) -> GatewayError {
    GatewayError::Damaged { at: position.to_string() }
}
