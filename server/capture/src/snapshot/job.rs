//! What a snapshot does next: pure, driven by what reads and chunks turn out to be.
//!
//! ```text
//! table:  Reading ──read to its end, every chunk emitted──▶ Finishing ──no key is incomplete──▶ Done
//!            ▲  │ a chunk must be read again: back to the last cursor that was emitted
//!            └──┘
//! snapshot: every table Done ─▶ end
//! ```
//!
//! A table without a key is read in the order of its blocks, under one snapshot of PostgreSQL. Without one (at first, after a
//! pause, after the connection that held it), the pass begins with taking one, at the start.
//!
//! Invariant: a table's chunks are emitted in the order of its key, each once; a cursor is passed only by a chunk that was
//! emitted. It deliberately neither reads nor waits.

use std::sync::{Arc, Weak};

use bytes::Bytes;
use tidegate_model::TableName;
use tidegate_postgres::snapshot::Fingerprint;
use tokio::time::{Duration, Instant};

use super::{blocks::SharedPass, order::Finish};

/// Bytes of one table that are read and not yet emitted: no further chunk is read with more. The stream's watermark may be as late as
/// PostgreSQL's next flush of its WAL.
const OUTSTANDING_BYTES_MAX: u64 = 3 * CHUNK_BYTES;
/// Chunks of one table that are read and not yet emitted, at most.
const OUTSTANDING_MAX: usize = 16;
/// Rows of the first chunk, before anything is known about them.
const FIRST_ROWS: u32 = 1_000;
/// Rows of a chunk, at most.
const ROWS_MAX: u32 = 200_000;
/// Blocks of the first chunk of a table without a key, and of any.
const FIRST_BLOCKS: u32 = 128;
const BLOCKS_MAX: u32 = 8_192;
/// How long the statement of a chunk should take.
const CHUNK_TIME: Duration = Duration::from_millis(250);
/// Bytes that a chunk should have: they wait in memory for the watermark.
pub(super) const CHUNK_BYTES: u64 = 8 << 20;
/// How long the snapshot of a table without a key is kept while no block can be read: it holds VACUUM back.
const IN_VAIN_MAX: Duration = Duration::from_secs(60);
/// Before rows are read again that could not be reconciled yet.
const AGAIN_PAUSE: Duration = Duration::from_millis(100);

/// One table of a snapshot.
#[derive(Debug)]
pub(crate) struct TableJob {
    pub(crate) name: TableName,
    pub(crate) row_count: u64,
    pub(crate) row_count_estimated: u64,
    phase: Phase,
    /// The next chunk starts there.
    next: Place,
    /// The last chunk that was emitted ended there.
    emitted: Place,
    reading: bool,
    /// Reads that were begun and are not emitted: a chunk may be emitted before we hear that it was read.
    outstanding: usize,
    /// What of them is known to have been read, less what is emitted.
    outstanding_bytes: i64,
    /// Chunks of earlier attempts are void.
    attempt: u32,
    /// Rows of the next chunk, or blocks.
    row_limit: u32,
    not_before: Option<Instant>,
    /// Keys whose rows are to be read again.
    keys: Vec<Box<[u8]>>,
    is_keyless: bool,
    /// What a table without a key is read under.
    shared: Option<Arc<SharedPass>>,
    /// When the first read failed of which none has succeeded since.
    in_vain_since: Option<Instant>,
}

/// A place in the order of the table's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Start,
    /// Behind the row that the reader's cursor names.
    After(Bytes),
    End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Reading,
    /// All chunks are out; keys that were left incomplete may have to be read.
    Finishing,
    Done,
}

/// What to do for a table.
#[derive(Clone, Debug)]
pub(crate) enum Work {
    /// Take the snapshot under which a table without a key is read.
    Share { attempt: u32 },
    /// Read the blocks that start there. While the work waits for its turn, it does not keep the snapshot.
    Blocks { from: Place, block_limit: u32, shared: Weak<SharedPass>, attempt: u32 },
    /// Read the chunk that starts there.
    Chunk { from: Place, row_limit: u32, attempt: u32 },
    /// Read the rows of these keys again.
    Keys { keys: Vec<Box<[u8]>>, attempt: u32 },
    /// Ask which keys are incomplete.
    Finish { attempt: u32 },
}

impl Work {
    pub(crate) fn attempt(&self) -> u32 {
        match self {
            Work::Share { attempt }
            | Work::Blocks { attempt, .. }
            | Work::Chunk { attempt, .. }
            | Work::Keys { attempt, .. }
            | Work::Finish { attempt } => *attempt,
        }
    }

    /// Where its chunk starts; None where it is not about a range.
    pub(crate) fn start(&self) -> Option<Place> {
        match self {
            Work::Share { .. } => Some(Place::Start),
            Work::Blocks { from, .. } | Work::Chunk { from, .. } => Some(from.clone()),
            Work::Keys { .. } | Work::Finish { .. } => None,
        }
    }
}

/// What a read has brought.
#[derive(Clone, Debug)]
pub(crate) struct Read {
    pub(crate) attempt: u32,
    pub(crate) row_count: u64,
    pub(crate) byte_count: u64,
    pub(crate) elapsed: Duration,
    /// Where the next chunk starts; None where rows were read again by key.
    pub(crate) end: Option<Place>,
    /// What the blocks to come are read under, where it was taken.
    pub(crate) shared: Option<Arc<SharedPass>>,
}

impl TableJob {
    /// A table whose chunks were emitted up to there.
    pub(crate) fn new(name: TableName, emitted: Place, row_count: u64) -> Self {
        TableJob {
            name,
            row_count,
            row_count_estimated: 0,
            phase: Phase::Reading,
            next: emitted.clone(),
            emitted,
            reading: false,
            outstanding: 0,
            outstanding_bytes: 0,
            attempt: 0,
            row_limit: FIRST_ROWS,
            not_before: None,
            keys: Vec::new(),
            is_keyless: false,
            shared: None,
            in_vain_since: None,
        }
    }

    /// It was planned: with or without a key, and as this.
    pub(crate) fn planned(&mut self, is_keyless: bool, fingerprint: &Fingerprint) {
        if is_keyless && !self.is_keyless {
            self.row_limit = FIRST_BLOCKS;
        }
        self.is_keyless = is_keyless;
        if self.shared.as_ref().is_some_and(|shared| shared.fingerprint != *fingerprint) {
            self.shared = None;
        }
    }

    /// Nothing is read for a while: PostgreSQL need not hold VACUUM back. A table without a key begins anew after it, also where its
    /// snapshot is just being taken; unless it has been read to its end.
    pub(crate) fn release(&mut self) {
        if self.is_keyless && self.phase == Phase::Reading && self.next != Place::End {
            self.shared = None;
            self.start_over(None);
        }
    }

    /// All that was read and not emitted is void: the connection has ended, or a chunk must be read again.
    pub(crate) fn start_over(&mut self, not_before: Option<Instant>) {
        self.attempt += 1;
        self.next.clone_from(&self.emitted);
        (self.reading, self.outstanding, self.outstanding_bytes) = (false, 0, 0);
        self.not_before = not_before;
        self.keys.clear();
    }

    /// Chunks that are being read or wait for the stream, and about how many bytes they have.
    pub(crate) fn in_flight(&self) -> (usize, u64) {
        let being_read = if self.reading { CHUNK_BYTES } else { 0 };
        (self.outstanding, self.waiting_bytes() + being_read)
    }

    fn waiting_bytes(&self) -> u64 {
        u64::try_from(self.outstanding_bytes).unwrap_or(0)
    }

    fn is_full(&self) -> bool {
        self.outstanding >= OUTSTANDING_MAX || self.waiting_bytes() >= OUTSTANDING_BYTES_MAX
    }

    /// Is what was read in this attempt not void?
    pub(crate) fn is_of(&self, attempt: u32) -> bool {
        self.attempt == attempt
    }

    pub(crate) fn is_done(&self) -> bool {
        self.phase == Phase::Done
    }

    /// When it can go on, where it waits for time to pass.
    pub(crate) fn not_before(&self) -> Option<Instant> {
        self.not_before
    }

    /// What to do now. The caller does it, and tells the outcome. Nothing is read unless `may_read`.
    pub(crate) fn next_work(&mut self, now: Instant, may_read: bool) -> Option<Work> {
        if self.not_before.is_some_and(|at| at > now) {
            return None;
        }
        self.not_before = None;
        match self.phase {
            _ if self.reading || self.is_full() => None,
            Phase::Reading | Phase::Finishing if !self.keys.is_empty() && may_read => {
                (self.reading, self.outstanding) = (true, self.outstanding + 1);
                let count = self.keys.len().min(self.row_limit as usize);
                Some(Work::Keys { keys: self.keys.drain(..count).collect(), attempt: self.attempt })
            }
            Phase::Reading if self.is_keyless && self.next != Place::End => may_read.then(|| self.next_blocks()),
            Phase::Reading if self.next != Place::End && may_read => {
                (self.reading, self.outstanding) = (true, self.outstanding + 1);
                Some(Work::Chunk { from: self.next.clone(), row_limit: self.row_limit, attempt: self.attempt })
            }
            Phase::Reading | Phase::Finishing
                if self.next == Place::End && self.outstanding == 0 && self.keys.is_empty() =>
            {
                self.phase = Phase::Finishing;
                self.reading = true;
                Some(Work::Finish { attempt: self.attempt })
            }
            Phase::Reading | Phase::Finishing | Phase::Done => None,
        }
    }

    fn next_blocks(&mut self) -> Work {
        (self.reading, self.outstanding) = (true, self.outstanding + 1);
        let (attempt, block_limit) = (self.attempt, self.row_limit.min(BLOCKS_MAX));
        match self.shared.as_ref().filter(|shared| shared.has(&self.next)) {
            Some(shared) => {
                let (from, shared) = (self.next.clone(), Arc::downgrade(shared));
                Work::Blocks { from, block_limit, shared, attempt }
            }
            None => {
                // What was emitted, and what waits, is void.
                (self.emitted, self.next, self.row_count) = (Place::Start, Place::Start, 0);
                (self.shared, self.attempt) = (None, attempt + 1);
                (self.outstanding, self.outstanding_bytes) = (1, 0);
                Work::Share { attempt: self.attempt }
            }
        }
    }

    /// A chunk, or the rows of some keys, were read and handed to the stream.
    pub(crate) fn was_read(&mut self, read: &Read) {
        if read.attempt != self.attempt {
            return;
        }
        (self.reading, self.in_vain_since) = (false, None);
        self.outstanding_bytes += signed(read.byte_count);
        if let Some(end) = &read.end {
            self.next.clone_from(end);
        }
        match &read.shared {
            Some(shared) => self.shared = Some(Arc::clone(shared)),
            None if read.end.is_some() => self.row_limit = adapted(self.row_limit, read),
            None => {}
        }
        if self.next == Place::End {
            // Whatever must be read again begins with another one.
            self.shared = None;
        }
    }

    /// The chunk has more bytes than may wait in memory: fewer rows the next time.
    pub(crate) fn chunk_was_too_large(&mut self, attempt: u32) {
        if attempt == self.attempt {
            self.row_limit = (self.row_limit / 4).max(1);
            self.start_over(None);
        }
    }

    /// A read failed: it is tried again after a while.
    pub(crate) fn read_failed(&mut self, attempt: u32, retry_at: Instant) {
        if attempt == self.attempt {
            let since = *self.in_vain_since.get_or_insert(retry_at);
            if retry_at > since + IN_VAIN_MAX {
                self.shared = None;
            }
            self.start_over(Some(retry_at));
        }
    }

    /// The pass of a table without a key cannot go on under its snapshot: it begins anew.
    pub(crate) fn begin_anew(&mut self, attempt: u32, not_before: Instant) {
        if attempt == self.attempt {
            self.shared = None;
            self.start_over(Some(not_before));
        }
    }

    /// A chunk is in the changelog; `end` is where it ended, None for keys. That counts, whatever attempt it was of: the stream
    /// takes only chunks that go on from there.
    pub(crate) fn was_emitted(&mut self, attempt: u32, end: Option<Place>, (row_count, byte_count): (u64, u64)) {
        self.row_count += row_count;
        if attempt == self.attempt {
            self.outstanding -= 1;
            self.outstanding_bytes -= signed(byte_count);
        }
        if let Some(end) = end {
            self.emitted = end;
            if !self.reading && self.outstanding == 0 {
                self.next.clone_from(&self.emitted);
            }
        }
    }

    /// These keys may be incomplete, and the rest of the pass may not cover them: they are read before the next chunk.
    pub(crate) fn read_between(&mut self, attempt: u32, keys: Vec<Box<[u8]>>) {
        if attempt == self.attempt && self.phase == Phase::Reading && self.keys.is_empty() {
            self.keys = keys;
        }
    }

    /// A chunk must be read again, and with it what was read after it.
    pub(crate) fn read_again(&mut self, attempt: u32, now: Instant) {
        if attempt == self.attempt {
            self.start_over(Some(now + AGAIN_PAUSE));
        }
    }

    /// The answer to [`Work::Finish`]: these keys are incomplete, and are read next; none, and the table is done.
    pub(crate) fn finished(&mut self, attempt: u32, finish: Finish, now: Instant) {
        if attempt != self.attempt {
            return;
        }
        self.reading = false;
        match finish {
            Finish::Keys(keys) => {
                self.phase = if keys.is_empty() { Phase::Done } else { Phase::Finishing };
                self.shared = None;
                self.not_before = (!keys.is_empty()).then(|| now + AGAIN_PAUSE);
                self.keys = keys;
            }
            Finish::From(place) => {
                (self.phase, self.emitted) = (Phase::Reading, place);
                self.start_over(None);
            }
        }
    }

    /// More keys have become incomplete since.
    pub(crate) fn finish_again(&mut self) {
        if self.phase == Phase::Done {
            self.phase = Phase::Finishing;
        }
    }
}

fn signed(byte_count: u64) -> i64 {
    i64::try_from(byte_count).unwrap_or(i64::MAX)
}

/// How many rows the next chunk should have, at most four times as many as the last.
fn adapted(row_limit: u32, read: &Read) -> u32 {
    let by_time = CHUNK_TIME.as_secs_f64() / read.elapsed.as_secs_f64().max(1e-4);
    let by_bytes = CHUNK_BYTES as f64 / read.byte_count.max(1) as f64;
    let factor = by_time.min(by_bytes).clamp(0.1, 4.0);
    ((f64::from(row_limit) * factor) as u32).clamp(1, ROWS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> TableJob {
        TableJob::new(TableName::new("public", "orders"), Place::Start, 0)
    }

    fn read(attempt: u32, end: Option<Place>) -> Read {
        Read { attempt, row_count: 1, byte_count: 1, elapsed: CHUNK_TIME, end, shared: None }
    }

    fn after(key: &'static str) -> Place {
        Place::After(Bytes::from_static(key.as_bytes()))
    }

    fn start(job: &mut TableJob) -> Option<Place> {
        job.next_work(Instant::now() + AGAIN_PAUSE, true).and_then(|work| work.start())
    }

    #[test]
    fn a_chunk_may_be_emitted_before_its_read_is_told() {
        let mut job = job();
        assert_eq!(start(&mut job), Some(Place::Start));
        job.was_emitted(0, Some(after("a")), (1, 1));
        job.was_read(&read(0, Some(after("a"))));
        assert_eq!(start(&mut job), Some(after("a")));
    }

    #[test]
    fn what_an_earlier_attempt_has_emitted_is_not_read_again() {
        let mut job = job();
        assert_eq!(start(&mut job), Some(Place::Start));
        job.was_read(&read(0, Some(after("a"))));
        job.start_over(None);
        job.was_emitted(0, Some(after("a")), (1, 1));
        assert_eq!(start(&mut job), Some(after("a")));
        assert_eq!(job.row_count, 1);
    }

    #[test]
    fn a_snapshot_that_is_taken_while_the_table_is_released_is_not_kept() {
        let mut job = job();
        job.is_keyless = true;
        let now = Instant::now() + AGAIN_PAUSE;
        let share = |job: &mut TableJob| match job.next_work(now, true) {
            Some(Work::Share { attempt }) => attempt,
            other => panic!("{other:?}"),
        };
        let first = share(&mut job);
        job.release();
        // Its mark is out.
        job.was_emitted(first, Some(after("a")), (0, 0));
        job.was_read(&read(first, Some(after("a"))));
        assert!(job.shared.is_none());
        assert!(share(&mut job) > first);
        // What has been read to its end needs none any more, and is not read again.
        job.was_read(&read(job.attempt, Some(Place::End)));
        job.release();
        job.was_emitted(job.attempt, Some(Place::End), (0, 0));
        assert!(matches!(job.next_work(now, true), Some(Work::Finish { .. })));
    }

    #[test]
    fn small_chunks_are_read_on_while_the_stream_is_late_and_large_ones_wait() {
        let in_a_row = |byte_count| {
            let mut job = job();
            let mut count = 0;
            while start(&mut job).is_some() {
                count += 1;
                job.was_read(&Read { byte_count, ..read(0, Some(after("a"))) });
            }
            count
        };
        assert_eq!((in_a_row(1_000), in_a_row(CHUNK_BYTES), in_a_row(4 * CHUNK_BYTES)), (OUTSTANDING_MAX, 3, 1));
    }

    #[test]
    fn the_next_chunk_has_as_many_rows_as_time_and_bytes_allow() {
        let next = |row_limit, row_count, byte_count, elapsed| {
            adapted(row_limit, &Read { row_count, byte_count, elapsed, ..read(0, None) })
        };
        // Fast and small: at most four times as many. As slow, or as large, as it should be: as many. Slower or larger: fewer.
        let fast = CHUNK_TIME / 100;
        assert_eq!(next(1_000, 1_000, 40_000, fast), 4_000);
        assert_eq!(next(1_000, 1_000, 40_000, CHUNK_TIME), 1_000);
        assert_eq!(next(1_000, 1_000, CHUNK_BYTES, fast), 1_000);
        assert_eq!(next(1_000, 1_000, 2 * CHUNK_BYTES, fast), 500);
        assert_eq!(next(1_000, 1_000, 40_000, 4 * CHUNK_TIME), 250);
        // Never fewer than a tenth at once, than one, or more than so many.
        assert_eq!(next(1_000, 1_000, 40_000, 1_000 * CHUNK_TIME), 100);
        assert_eq!((next(1, 1, u64::MAX, fast), next(ROWS_MAX, 1, 1, Duration::ZERO)), (1, ROWS_MAX));
        let mut job = job();
        assert!(matches!(job.next_work(Instant::now(), true), Some(Work::Chunk { row_limit: FIRST_ROWS, .. })));
        job.was_read(&Read { elapsed: fast, ..read(0, Some(after("a"))) });
        let next = job.next_work(Instant::now(), true);
        assert!(matches!(next, Some(Work::Chunk { row_limit, .. }) if row_limit == 4 * FIRST_ROWS), "{next:?}");
    }

    #[test]
    fn fewer_keys_are_asked_for_at_once_where_their_rows_are_large() {
        let mut job = job();
        job.next = Place::End;
        let now = Instant::now() + AGAIN_PAUSE;
        let keys = |count: u8| Finish::Keys((0..count).map(|key| Box::from([key])).collect());
        let asked = |job: &mut TableJob| match job.next_work(now + AGAIN_PAUSE, true) {
            Some(Work::Keys { keys, .. }) => keys.len(),
            other => panic!("{other:?}"),
        };
        job.row_limit = 8;
        assert!(matches!(job.next_work(now, true), Some(Work::Finish { attempt: 0 })));
        job.finished(0, keys(9), now);
        assert_eq!(asked(&mut job), 8);
        (job.emitted, job.phase) = (Place::End, Phase::Finishing);
        job.chunk_was_too_large(0);
        assert!(matches!(job.next_work(now, true), Some(Work::Finish { attempt: 1 })));
        job.finished(1, keys(9), now);
        assert_eq!(asked(&mut job), 2);
    }
}
