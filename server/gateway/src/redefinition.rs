//! A named shape is defined anew while a subscription has it, or its token is from before: the difference brings it to the new definition.
//!
//! ```text
//! named_shapes ──edited──▶ prepared ──▶ Redefinition: plan before, plan after, token prefix
//!                                            │
//! log ──blocks up to M────▶ Turning ─────────┼──▶ by the plan before
//! mirror as it is at M ────▶    │ ───────────┼──▶ Begin · what enters, leaves, has other columns · Commit{token_prefix}
//! log ──blocks behind M───▶     └────────────┴──▶ by the plan after
//! ```
//!
//! **Exact.** At M the subscription has the rows that meet the condition before, since the mirror has what the log says. Each row of the
//! mirror at M is judged by both definitions: so behind the difference the subscription has the rows that meet the condition after.
//!
//! **One step.** The difference has one Begin and one Commit, whose prefix makes the tokens from there on. A connection that is lost before
//! leaves a token of the definition before, with which it all comes again, at another M. Nothing is kept of it but the
//! definitions that a name had.
//!
//! **One table at a time.** What the mirror has of two tables is of two positions. A version of a source's shapes is another one after each
//! edit, of one name: who has several shapes that were edited goes from one version to the next.
//!
//! **Bounded.** The difference is held until it has been sent: so many bytes for one subscription, and so many for all of a source. One that has
//! more by itself is a Reset, and so it is where the table is another one or has no mirror, where subqueries are selected, and where the new
//! definition cannot be selected. Of one that is received slowly the rest waits on the disk, for which there is a bound too. Who finds no room
//! is told to come again with the token of before.

mod difference;
mod turning;

use std::{collections::BTreeSet, sync::Arc};

use tidegate_model::{Position, Retry, TableName, TokenPrefix};
use tidegate_proto::v1;

use crate::{
    mirror_snapshot::{self, Wanted, mirrored},
    named_shapes::NamedInUse,
    reset::Refusal,
    selection::{Filter, Plan},
    shape::{self, ShapeFilter},
    shared::Shared,
    source::Source,
};

pub(crate) use turning::{Spool, Turned, Turning};

/// A subscription's way from one definition of its shapes to another.
#[derive(Clone)]
pub(crate) struct Redefinition {
    before: Arc<Plan>,
    /// Behind it.
    pub(crate) plan: Arc<Plan>,
    /// Behind it.
    pub(crate) prefix: TokenPrefix,
    /// As they are behind it.
    pub(crate) named: NamedInUse,
    /// What has been defined anew: selections of one table.
    selections: Vec<usize>,
    /// Rows of that table, with all that meet any of the conditions.
    rows: Wanted,
    /// The number that its Begin states.
    snapshot: u32,
}

/// What an edit is to a subscription.
pub(crate) enum Prepared {
    /// The rows that it has, and the columns, are the same.
    Same(NamedInUse),
    /// It cannot be said yet.
    Later,
    /// It has to be told.
    Difference(Arc<Redefinition>),
}

/// Looks what the names of a subscription's shapes mean now.
pub(crate) async fn prepared(
    shared: Arc<Shared>,
    source: Arc<Source>,
    plan: Arc<Plan>,
    named: NamedInUse,
) -> Result<Prepared, Refusal> {
    let mut refused = None;
    for version in named.ahead() {
        match prepared_at(version, (&shared, &source), &plan, &named).await {
            Ok(Some(prepared)) => return Ok(prepared),
            Ok(None) => {}
            Err(Refusal::Error(error)) => match error.retry() {
                Retry::After(_) => return Ok(Prepared::Later),
                Retry::Never | Retry::Reset => {
                    refused.get_or_insert(reset(&named, &error.to_string()));
                }
            },
            Err(reset) => {
                refused.get_or_insert(reset);
            }
        }
    }
    Err(refused.unwrap_or_else(|| reset(&named, "more than one table is concerned")))
}

/// The same for one version of the source's shapes. None where shapes of several tables have been edited up to there.
async fn prepared_at(
    version: u64,
    (shared, source): (&Shared, &Source),
    plan: &Arc<Plan>,
    named: &NamedInUse,
) -> Result<Option<Prepared>, Refusal> {
    let filters = plan.key.filters();
    let (definitions, then) = named.at(version, filters)?;
    let (mut after, mut changed) = (filters.to_vec(), Vec::new());
    for (selection, definition) in definitions {
        let definition = shape::definition(definition, &shared.config)?;
        let Some(before) = filters[selection].shape() else { continue };
        if definition == *before.definition() {
            continue;
        }
        let made = ShapeFilter::new(definition, source).await?;
        if made.hash() == before.hash() {
            continue;
        }
        if made.table() != before.table() {
            let why = format!("it is of table {} now, and was of {}", made.table(), before.table());
            return Err(reset(named, &why));
        }
        changed.push(selection);
        after[selection] = Filter::Shape(made);
    }
    let Some(epoch) = named.epoch().filter(|_| !changed.is_empty()) else { return Ok(Some(Prepared::Same(then))) };
    if filters.iter().chain(&after).filter_map(Filter::shape).any(|shape| !shape.subqueries().is_empty()) {
        return Err(reset(named, "a shape with subqueries is selected"));
    }
    let of_changed = || changed.iter().flat_map(|&at| [&filters[at], &after[at]]).filter_map(Filter::shape);
    let tables: BTreeSet<&TableName> = of_changed().map(ShapeFilter::table).collect();
    let (Some(&table), 1) = (tables.first(), tables.len()) else { return Ok(None) };
    if may_be_mirrored_later(source, table) {
        return Ok(Some(Prepared::Later));
    }
    let Some(rows) = mirrored(source, std::slice::from_ref(table), &shared.config).await? else {
        return match may_be_mirrored_later(source, table) {
            true => Ok(Some(Prepared::Later)),
            false => Err(reset(named, &format!("table {table} is not mirrored, so that the difference is not known"))),
        };
    };
    let rows = rows.into_iter().next().expect("one table was asked for").of_all(of_changed(), source);
    let key = plan.key.with(after);
    let key = if key.is_of_mirror() { key.in_log() } else { key };
    let prefix = key.prefix(epoch);
    Ok(Some(Prepared::Difference(Arc::new(Redefinition {
        before: Arc::clone(plan),
        plan: source.plan(key),
        prefix,
        named: then,
        selections: changed,
        rows,
        snapshot: mirror_snapshot::number(&*shared.clock),
    }))))
}

/// Is there no complete mirror of the table now, and may there be one? Asks nobody.
fn may_be_mirrored_later(source: &Source, table: &TableName) -> bool {
    use v1::mirrored_table::State;
    let Some(mirror) = source.handle.mirror.as_ref().filter(|mirror| mirror.follows(table)) else { return false };
    let name = table.to_string();
    let status = source.handle.status.borrow();
    let state = status.mirror.iter().find(|of| of.table == name).map(v1::MirroredTable::state);
    match state {
        Some(State::Unsupported) => false,
        Some(State::Complete | State::Verifying) => *mirror.positions().borrow() == Position::ZERO,
        Some(_) | None => true,
    }
}

/// What a subscription is told where the difference is not to be had.
pub(crate) fn reset(named: &NamedInUse, why: &str) -> Refusal {
    Refusal::Reset(v1::Reset {
        reason: v1::reset::Reason::DefinitionChanged as i32,
        detail: format!(
            "shape {} has been defined anew, and what that changes cannot be told ({why}); read its rows anew, by subscribing without the \
             token from a snapshot",
            named.names()
        ),
    })
}

impl Redefinition {
    fn reset(&self, why: &str) -> Refusal {
        reset(&self.named, why)
    }
}
