//! A snapshot under way: its tables, and what comes next. Pure.
//!
//! ```text
//! Idle ── tables planned, stream follows them ──▶ Reading ── every table done ──▶ Ending ──▶ over
//!   ▲                                                │  ▲                            │ a key is incomplete
//!   └──────────── the connection has ended ──────────┘  └────────────────────────────┘
//! ```

use std::{collections::VecDeque, sync::Arc};

use tidegate_control::{JobState, SnapshotJob};
use tidegate_model::{Epoch, Position, SnapshotSpec, TableName};
use tokio::time::{Duration, Instant};

use super::{
    gaps::Gaps,
    job::{Place, TableJob, Work},
    reader::Planned,
    requests::{PartStatus, SnapshotStatus, TableStatus},
};

/// Over how long the rate is taken.
const RATE_WINDOW: Duration = Duration::from_secs(5);

/// How far an unfinished snapshot had got when the server started.
#[derive(Clone, Debug, Default)]
pub(crate) struct SnapshotResume {
    /// Where it begins in the changelog.
    pub(crate) begin: Position,
    /// Its tables of which a chunk is stored.
    pub(crate) tables: Vec<TableResume>,
}

/// The last stored chunk of a table.
#[derive(Clone, Debug)]
pub(crate) struct TableResume {
    pub(crate) name: TableName,
    /// Where the cursor stands.
    pub(crate) at: Position,
    /// Its rows' encoding.
    pub(crate) row_type: u32,
    /// Where the next chunk starts.
    pub(crate) place: Place,
    pub(crate) row_count: u64,
    pub(crate) gaps: Gaps,
    /// Of the definition that the chunk was read under.
    pub(crate) fingerprint: String,
    /// It has no key, and what was received of it before is void.
    pub(crate) voided: bool,
}

/// A snapshot that has not ended.
#[derive(Debug)]
pub(crate) struct Pass {
    job: SnapshotJob,
    after: Option<Position>,
    tables: Vec<TableJob>,
    /// Of each table.
    parts: Vec<PartStatus>,
    plans: Vec<Arc<Planned>>,
    stage: Stage,
    /// A table without a key is refused.
    keyed_only: bool,
    /// It is to end like this before it is complete.
    abandoned: Option<(JobState, String)>,
    retry_at: Option<Instant>,
    detail: String,
    /// When how many rows were out.
    recent: VecDeque<(Instant, u64)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Idle,
    Beginning,
    Reading,
    Ending,
}

/// What to do next.
#[derive(Debug)]
pub(crate) enum Step {
    /// Plan the tables, and let the stream follow them.
    Begin,
    /// Something for a table.
    Table(usize, Work),
    /// Order the end; given up where there is a reason.
    End(String),
}

impl Pass {
    /// One that was recorded, and had got so far.
    pub(crate) fn new(job: SnapshotJob, resume: Option<SnapshotResume>) -> Self {
        let place = |name: &TableName| {
            let known = resume.iter().flat_map(|resume| &resume.tables).find(|table| table.name == *name);
            match known {
                None => TableJob::new(name.clone(), Place::Start, 0),
                Some(table) => TableJob::new(name.clone(), table.place.clone(), table.row_count),
            }
        };
        Pass {
            tables: job.tables.iter().map(place).collect(),
            parts: job.tables.iter().map(|name| PartStatus::of(job.parts.get(name))).collect(),
            after: resume.as_ref().map(|resume| before(resume.begin)),
            job,
            plans: Vec::new(),
            stage: Stage::Idle,
            keyed_only: false,
            abandoned: None,
            retry_at: None,
            detail: String::new(),
            recent: VecDeque::new(),
        }
    }

    pub(crate) fn number(&self) -> u32 {
        self.job.snapshot
    }

    pub(crate) fn epoch(&self) -> Epoch {
        self.job.epoch
    }

    /// What its subscribers read after; None before it begins.
    pub(crate) fn after(&self) -> Option<Position> {
        self.after
    }

    /// It refuses tables without a key, or does not. Once it has begun, it makes no difference.
    pub(crate) fn set_keyed_only(&mut self, keyed_only: bool) {
        self.keyed_only = keyed_only;
    }

    pub(crate) fn is_keyed_only(&self) -> bool {
        self.keyed_only
    }

    /// May whoever asks for this join it? Who asks for one that others are to receive must not get one that they do not: a subscription
    /// that was opened behind its begin would wait for it in vain.
    pub(crate) fn can_be_joined(&self, spec: &SnapshotSpec) -> bool {
        let has_begun = self.after.is_some() || self.stage != Stage::Idle;
        let is_running = self.job.state == JobState::Running && self.abandoned.is_none();
        let is_same = self.job.tables == spec.tables && self.job.parts == spec.parts;
        let is_received = !spec.ad_hoc || (self.job.ad_hoc && !has_begun);
        is_running && is_same && is_received
    }

    /// As it was asked for, and whether a table without a key is refused.
    pub(crate) fn to_plan(&self) -> (SnapshotJob, bool) {
        (self.job.clone(), self.keyed_only)
    }

    /// Do subscriptions receive it that have not started from it?
    pub(crate) fn is_for_others(&self) -> bool {
        self.job.new_tables || self.job.ad_hoc
    }

    /// Is it being planned?
    pub(crate) fn is_beginning(&self) -> bool {
        self.stage == Stage::Beginning
    }

    /// Its chunks that are being read or wait for the stream, and about how many bytes they have.
    pub(crate) fn in_flight(&self) -> (usize, u64) {
        let tables = self.tables.iter().map(TableJob::in_flight);
        tables.fold((0, 0), |(count, byte_count), table| (count + table.0, byte_count + table.1))
    }

    pub(crate) fn plan(&self, table: usize) -> Arc<Planned> {
        Arc::clone(&self.plans[table])
    }

    pub(crate) fn table(&mut self, table: usize) -> &mut TableJob {
        &mut self.tables[table]
    }

    pub(crate) fn set_state(&mut self, state: JobState) {
        self.job.state = state;
        if state != JobState::Running {
            self.release();
        }
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.job.state == JobState::Paused
    }

    /// Nothing can be read for a while: it is paused, or the stream has lost its connection.
    pub(crate) fn release(&mut self) {
        self.tables.iter_mut().for_each(TableJob::release);
    }

    /// It is to end before it is complete.
    pub(crate) fn abandon(&mut self, state: JobState, detail: String) {
        self.abandoned.get_or_insert((state, detail));
        self.release();
    }

    /// How it has ended, once its end is in the changelog.
    pub(crate) fn outcome(&self) -> (JobState, &str) {
        match &self.abandoned {
            Some((state, detail)) => (*state, detail),
            None => (JobState::Done, ""),
        }
    }

    /// A read has found that a table is not what it was planned as: all are planned again. Unless what was read is void, since that has
    /// been done, or since it ends: one that is planned twice at the same time could begin again when it is over.
    pub(crate) fn table_changed(&mut self, table: usize, attempt: u32) {
        if self.stage != Stage::Reading || !self.tables[table].is_of(attempt) {
            return;
        }
        self.stage = Stage::Idle;
        for table in &mut self.tables {
            table.start_over(None);
        }
    }

    /// What to do now; the caller does it, and tells the outcome. `may_read`: a chunk may be read.
    pub(crate) fn next_step(&mut self, now: Instant, may_read: bool) -> Option<Step> {
        if self.retry_at.is_some_and(|at| at > now) {
            return None;
        }
        self.retry_at = None;
        if let Some((_, detail)) = &self.abandoned {
            // What is beginning must be known to have begun, or not, before its end.
            return (!matches!(self.stage, Stage::Beginning | Stage::Ending)).then(|| {
                self.stage = Stage::Ending;
                Step::End(detail.clone())
            });
        }
        match self.stage {
            _ if self.job.state != JobState::Running => None,
            Stage::Idle => {
                self.stage = Stage::Beginning;
                Some(Step::Begin)
            }
            Stage::Reading if self.tables.iter().all(TableJob::is_done) => {
                self.stage = Stage::Ending;
                Some(Step::End(String::new()))
            }
            Stage::Reading => {
                let work = |(at, table): (usize, &mut TableJob)| Some(Step::Table(at, table.next_work(now, may_read)?));
                self.tables.iter_mut().enumerate().find_map(work)
            }
            Stage::Beginning | Stage::Ending => None,
        }
    }

    /// When time alone lets it go on.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        match self.retry_at {
            Some(retry_at) => Some(retry_at),
            None if self.stage == Stage::Reading && self.job.state == JobState::Running => {
                self.tables.iter().filter_map(TableJob::not_before).min()
            }
            None => None,
        }
    }

    /// The stream follows its tables, which are these.
    pub(crate) fn has_begun(&mut self, after: Position, plans: Vec<Arc<Planned>>) {
        for (table, planned) in self.tables.iter_mut().zip(&plans) {
            table.row_count_estimated = planned.row_count_estimated();
            table.planned(planned.is_keyless(), &planned.plan.fingerprint);
        }
        (self.stage, self.after, self.plans) = (Stage::Reading, Some(after), plans);
        self.detail.clear();
    }

    /// It could not begin, and tries again then. Is it another reason than the last time?
    pub(crate) fn begin_failed(&mut self, detail: String, retry_at: Instant) -> bool {
        self.release();
        let is_new = self.detail != detail;
        (self.stage, self.detail, self.retry_at) = (Stage::Idle, detail, Some(retry_at));
        is_new
    }

    /// Why it waits.
    pub(crate) fn waits(&mut self, detail: String) {
        self.detail = detail;
    }

    /// A row is still to be read: each table is asked again.
    pub(crate) fn end_refused(&mut self, retry_at: Instant) {
        (self.stage, self.retry_at) = (Stage::Reading, Some(retry_at));
        self.tables.iter_mut().for_each(TableJob::finish_again);
    }

    /// Notes what is out by now.
    pub(crate) fn measured(&mut self, now: Instant) {
        self.detail.clear();
        let row_count = self.tables.iter().map(|table| table.row_count).sum();
        if self.recent.back().is_some_and(|(_, before)| *before > row_count) {
            // A table has been begun anew.
            self.recent.clear();
        }
        self.recent.push_back((now, row_count));
        while self.recent.len() > 2 && self.recent[1].0 + RATE_WINDOW < now {
            self.recent.pop_front();
        }
    }

    /// As others see it.
    pub(crate) fn status(&self) -> SnapshotStatus {
        let table = |(table, part): (&TableJob, &PartStatus)| TableStatus {
            name: table.name.clone(),
            row_count: table.row_count,
            row_count_estimated: table.row_count_estimated,
            is_done: table.is_done(),
            part: part.clone(),
        };
        let rows_per_second = match (self.recent.front(), self.recent.back()) {
            (Some(first), Some(last)) if last.0 > first.0 => {
                ((last.1 - first.1) as f64 / (last.0 - first.0).as_secs_f64()) as u64
            }
            _ => 0,
        };
        SnapshotStatus {
            snapshot: self.job.snapshot,
            state: self.job.state,
            detail: self.detail.clone(),
            tables: self.tables.iter().zip(&self.parts).map(table).collect(),
            after: self.after,
            created_us: self.job.created_us,
            ended_us: None,
            rows_per_second,
            new_tables: self.job.new_tables,
            ad_hoc: self.job.ad_hoc,
        }
    }
}

/// The position before a snapshot's begin: nothing else stands there.
pub(crate) fn before(begin: Position) -> Position {
    Position::new(begin.lsn, begin.ordinal - 1)
}

#[cfg(test)]
mod tests {
    use tidegate_model::Parts;

    use super::*;

    fn job(tables: &[&str]) -> SnapshotJob {
        SnapshotJob {
            snapshot: 6,
            epoch: Epoch(1),
            tables: tables.iter().map(|table| TableName::new("public", *table)).collect(),
            state: JobState::Running,
            detail: String::new(),
            created_us: 0,
            ended_us: None,
            new_tables: false,
            ad_hoc: true,
            parts: Parts::new(),
        }
    }

    #[test]
    fn tables_that_change_at_once_are_planned_again_once() {
        let mut pass = Pass::new(job(&["a", "b"]), None);
        let now = Instant::now();
        assert!(matches!(pass.next_step(now, true), Some(Step::Begin)));
        pass.has_begun(Position::ZERO, Vec::new());
        let read = |pass: &mut Pass| match pass.next_step(now, true) {
            Some(Step::Table(table, Work::Chunk { attempt, .. })) => (table, attempt),
            other => panic!("{other:?}"),
        };
        let (first, second) = (read(&mut pass), read(&mut pass));
        pass.table_changed(first.0, first.1);
        assert!(matches!(pass.next_step(now, true), Some(Step::Begin)));
        // Were it planned twice at the same time, the later one could come to the stream when the snapshot is over, and begin it again.
        pass.table_changed(second.0, second.1);
        assert!(pass.next_step(now, true).is_none(), "it is being planned");
        pass.has_begun(Position::ZERO, Vec::new());
        // What had been read before says nothing about what is read now.
        pass.table_changed(second.0, second.1);
        let third = read(&mut pass);
        pass.abandon(JobState::Cancelled, "cancelled".to_owned());
        assert!(matches!(pass.next_step(now, true), Some(Step::End(_))));
        pass.table_changed(third.0, third.1);
        assert!(pass.next_step(now, true).is_none(), "it is ending");
    }

    #[test]
    fn the_rate_begins_anew_with_a_table() {
        let mut pass = Pass::new(job(&["a"]), None);
        let start = Instant::now();
        for (second, row_count, expected) in [(0, 100, 0), (1, 400, 300), (2, 50, 0), (3, 250, 200)] {
            pass.table(0).row_count = row_count;
            pass.measured(start + Duration::from_secs(second));
            assert_eq!(pass.status().rows_per_second, expected, "at {second} s");
        }
    }

    #[test]
    fn who_has_others_receive_it_joins_only_what_has_not_begun() {
        let job = job(&["t"]);
        let own = SnapshotSpec::of_tables(job.tables.clone());
        let for_others = SnapshotSpec { ad_hoc: true, ..own.clone() };
        let mut pass = Pass::new(job.clone(), None);
        assert!(pass.can_be_joined(&for_others) && pass.can_be_joined(&own));
        assert!(matches!(pass.next_step(Instant::now(), true), Some(Step::Begin)));
        assert!(!pass.can_be_joined(&for_others) && pass.can_be_joined(&own));
        let resume = SnapshotResume { begin: Position::new(tidegate_model::Lsn(8), 1 << 31), tables: Vec::new() };
        let taken_up = Pass::new(job, Some(resume));
        assert!(!taken_up.can_be_joined(&for_others) && taken_up.can_be_joined(&own));
    }
}
