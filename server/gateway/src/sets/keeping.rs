//! The task that keeps the sets of one shape: builds them where its first subscription begins, and follows the log from there.
//!
//! ```text
//! log ── blocks ──▶ inner sets ──▶ outer sets ──▶ the shape ──▶ published, with the place up to which all is known
//!                       flips ──scan──▶  flips ──scan──▶ what moves
//! ```
//!
//! Where sets have flipped in a run of blocks, the rows of the table that they concern are read from the mirror once, as it is by then, and the log
//! up to there says what they were before. So the cost of a scan is shared by all transactions of the run, which grows as long as each needs one.

use std::sync::{Arc, Weak};

use tidegate_model::{Block, Epoch, Position, TableName};
use tidegate_store::{MirrorError, Place, Reader, Scan};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::timeout,
};

use super::{
    Ended, KEPT_BYTES_MAX, LAG_BYTES_MAX, LINGER, MIRROR_WAIT, SET_BYTES_MAX, TOUCHED_BYTES_MAX,
    budget::Share,
    changes::{Step, TableChanges, key_of},
    consumer::Consumer,
    gathering::{Begun, Gathering, Wanted},
    keeper::{Moved, Record, Shared},
    node::{Moves, Node},
    run::{Concern, Run},
    versions::Versions,
};
use crate::source::{KnownTable, Source, SourceHandle};

/// Log that is taken at a time, in bytes, while nothing flips.
const RUN_BYTES: usize = 4 << 20;
/// The same while each run has to look at tables.
const RUN_BYTES_MAX: usize = 64 << 20;
/// What is held of a run, in bytes.
const HELD_BYTES: usize = 8 << 20;

/// The task's own.
pub(super) struct Keeping {
    pub(super) shared: Arc<Shared>,
    pub(super) share: Arc<Share>,
    pub(super) handle: SourceHandle,
    pub(super) source: Weak<Source>,
    /// Of its mirror.
    pub(super) reads: Arc<Semaphore>,
    pub(super) epoch: Epoch,
    /// In the order of the shared sets: those within others first.
    pub(super) nodes: Vec<Node>,
    pub(super) shape: Consumer,
    pub(super) reader: Reader,
    pub(super) concern: Concern,
    /// The most that a look at a table has found for the run; None where it needed none.
    pub(super) found_bytes: Option<usize>,
    /// Where it began.
    pub(super) start: Position,
    /// All up to here is in the sets: the end of a transaction.
    pub(super) at: Position,
}

/// Which condition a scan is for.
#[derive(Clone, Copy)]
enum For {
    Node(usize),
    Shape,
}

impl Drop for Keeping {
    fn drop(&mut self) {
        // It has panicked, or the server stops: nobody may wait for it.
        self.shared.end(Ended::Later("the subqueries' sets are not kept any more".to_owned()));
    }
}

impl Keeping {
    pub(super) async fn run(mut self) {
        let ended = match self.keep().await {
            Ok(()) => Ended::Later("nobody has needed the subqueries' sets for a while".to_owned()),
            Err(ended) => ended,
        };
        tracing::debug!(%ended, "the sets of a shape's subqueries are not kept any more");
        if let (Ended::Crowded { .. }, Some(source)) = (&ended, self.source.upgrade()) {
            source.sets.end_unused();
        }
        if ended.is_of_old_facts()
            && let Some(source) = self.source.upgrade()
            && let Consumer::Shape { of, .. } = &self.shape
        {
            // Who subscribes next finds what the catalog says now, or is told.
            let _answered = of.renewed(&source).await;
        }
        self.shared.end(ended);
    }

    /// Until nobody needs it.
    async fn keep(&mut self) -> Result<(), Ended> {
        for number in 0..self.nodes.len() {
            let place = self.reader.place();
            let Begun { rows, mut set } = self.scan(For::Node(number), Wanted::Selected, (place, self.at)).await?.begun;
            // They have always been there.
            set.end(None);
            self.nodes[number].rows = rows;
            self.shared.write().sets.sets[number] = set;
            self.check_size()?;
        }
        self.show();
        let mut unused = std::pin::pin!(unused(Arc::clone(&self.shared)));
        let names = self.nodes.iter().map(|node| node.consumer.table().clone()).collect();
        let mut gone = std::pin::pin!(gone(self.handle.tables.clone(), names));
        let mut run_bytes = RUN_BYTES;
        loop {
            let place = self.reader.place();
            let block = tokio::select! {
                // First: the log may always have more.
                biased;
                () = &mut unused => return Ok(()),
                table = &mut gone => {
                    return Err(Ended::Lost(format!("table {table}, which a subquery reads, is gone, or has another name")));
                }
                block = self.reader.next() => block?,
            };
            let run = self.run_of(block, run_bytes).await;
            self.take(&run, place).await?;
            run_bytes = next_run(run_bytes, self.found_bytes.take());
            self.show();
            self.check_lag()?;
            tokio::task::coop::consume_budget().await;
        }
    }

    /// A run of blocks that begins with this one: what there is by now, up to so many bytes.
    async fn run_of(&mut self, block: Block, bytes_max: usize) -> Run {
        let end = self.reader.end();
        let mut run = Run::default();
        run.push(block, &mut self.concern, &self.handle.store);
        while run.byte_count < bytes_max
            && run.held_bytes < HELD_BYTES
            && self.reader.place() < end
            // What ends the log is met again behind what it has.
            && let Ok(block) = self.reader.next().await
        {
            run.push(block, &mut self.concern, &self.handle.store);
        }
        run
    }

    /// Who would not catch up begins anew, where the log is by then.
    fn check_lag(&self) -> Result<(), Ended> {
        let bytes = self.reader.end().0.saturating_sub(self.reader.place().0);
        if bytes > LAG_BYTES_MAX {
            return Err(Ended::Lost(format!("their sets are {bytes} bytes of changes behind, and do not catch up")));
        }
        Ok(())
    }

    fn show(&self) {
        let place = self.reader.place();
        self.shared.progress.send_modify(|progress| progress.place = Some(place));
    }

    /// A run of blocks, behind a place.
    async fn take(&mut self, run: &Run, place: Place) -> Result<(), Ended> {
        let through = run.complete.map_or(self.at, Position::as_resume_point).max(self.at);
        for number in 0..self.nodes.len() {
            let moves = self.moves(For::Node(number), (place, through)).await?;
            let node = &mut self.nodes[number];
            let effects = {
                let published = self.shared.read();
                node.effects((&run.blocks, self.start), moves, (&published.sets, &self.handle.store))?
            };
            let mut published = self.shared.write();
            effects.into_iter().for_each(|effect| node.rows.apply(effect, &mut published.sets.sets[number]));
        }
        match self.moves(For::Shape, (place, through)).await {
            Ok(moves) => self.record(&run.blocks, moves),
            // Who has that behind him goes on.
            Err(Ended::TooMuch { .. } | Ended::Lost(_)) => self.shared.write().forget_through(through),
            Err(ended) => return Err(ended),
        }
        self.at = through;
        self.shared.write().keep_bytes(KEPT_BYTES_MAX);
        self.check_size()
    }

    fn check_size(&self) -> Result<(), Ended> {
        let bytes = self.byte_count();
        match self.nodes.first() {
            // What has flipped and moved has a bound of its own.
            Some(first) if bytes > SET_BYTES_MAX + KEPT_BYTES_MAX => {
                Err(Ended::TooLarge { table: first.consumer.table().clone(), bytes_max: SET_BYTES_MAX })
            }
            Some(_) | None => self.share.set(bytes),
        }
    }

    /// About the size in memory of all that is kept.
    fn byte_count(&self) -> usize {
        self.nodes.iter().map(|node| node.rows.byte_count()).sum::<usize>() + self.shared.read().byte_count()
    }

    /// What moves within a run, for nothing but the subqueries.
    async fn moves(&mut self, of: For, (place, through): (Place, Position)) -> Result<Moves, Ended> {
        let (shared, behind) = (Arc::clone(&self.shared), self.at);
        let flipped = shared.read().sets.have_flipped(self.consumer(of).subqueries(), behind, through);
        if !flipped {
            return Ok(Moves::new());
        }
        let others = self.found_bytes;
        // Where it is too much for one run, the next is small again.
        self.found_bytes = Some(usize::MAX);
        let gathering = self.scan(of, Wanted::Moves, (place, through)).await?;
        self.found_bytes = others.max(Some(gathering.byte_count));
        Ok(gathering.found)
    }

    fn record(&self, run: &[Block], mut moves: Moves) {
        if moves.is_empty() {
            return;
        }
        let mut published = self.shared.write();
        let commits = run.iter().flat_map(Block::entries).filter(|entry| entry.kind == tidegate_model::Kind::Commit);
        for commit in commits {
            let at = commit.position().as_resume_point();
            let Some(mut found) = moves.remove(&at) else { continue };
            // In the same order whenever it was looked.
            found.sort_unstable_by(|one, other| one.key.cmp(&other.key));
            let moved =
                |found: super::gathering::Found| Moved { row_type: found.row_type, row: found.row, is_in: found.is_in };
            let moved = found.into_iter().map(moved).collect();
            published.push(Record { at, moved });
        }
    }

    fn consumer(&mut self, of: For) -> &mut Consumer {
        match of {
            For::Node(number) => &mut self.nodes[number].consumer,
            For::Shape => &mut self.shape,
        }
    }

    /// Looks at the table of a condition, from behind a place in the log up to a position.
    async fn scan(&mut self, of: For, wanted: Wanted, (place, through): (Place, Position)) -> Result<Gathering, Ended> {
        let keeps_rows = matches!(of, For::Shape);
        let mut gathering = Gathering {
            wanted,
            behind: self.at,
            through,
            keeps_rows,
            store: self.handle.store.clone(),
            found: Moves::new(),
            begun: Begun::default(),
            byte_count: 0,
            share: Arc::clone(&self.share),
            held_bytes: self.byte_count(),
            bytes_max: if keeps_rows { KEPT_BYTES_MAX } else { SET_BYTES_MAX },
            room: Vec::new(),
        };
        let table = self.consumer(of).table().clone();
        // Held until the last row has been looked at, even if nobody waits for that any more.
        let permit = Arc::clone(&self.reads).acquire_owned().await.expect("it is never closed");
        let scan = self.rows(&table, through).await?;
        let versions = self.replaced((of, &table), &mut gathering, (place, scan.position())).await?;
        self.remaining(of, gathering, (versions, scan, permit)).await
    }

    /// The table's rows as the mirror has them, no earlier than this.
    async fn rows(&self, table: &TableName, through: Position) -> Result<Scan, Ended> {
        let closed = || Ended::Later("the mirror is being opened".to_owned());
        let mirror = self.handle.mirror.clone().ok_or_else(closed)?;
        let mut positions = mirror.positions();
        let opened = async {
            loop {
                let is_there = |at: &Position| *at != Position::ZERO && at.as_resume_point() >= through;
                let there = positions.wait_for(is_there).await.is_ok();
                assert!(there, "the sender lives as long as the handle");
                let (mirror, name) = (mirror.clone(), table.clone());
                let scan = move || {
                    let tables = mirror.tables()?;
                    // It has come across some: those of the subqueries.
                    if tables.is_empty() {
                        return Err(MirrorError::Closed);
                    }
                    let known = tables.into_iter().find(|known| known.name == name && known.complete);
                    known.map(|known| mirror.scan(known.table_oid)).transpose()
                };
                let scanned = tokio::task::spawn_blocking(scan).await;
                match scanned.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic())) {
                    Ok(Some(scan)) if scan.position().as_resume_point() >= through => return Ok(scan),
                    Ok(Some(_)) => tokio::task::yield_now().await,
                    // It is opened again, which its position tells.
                    Err(MirrorError::Closed) if positions.has_changed().is_ok_and(|changed| changed) => {}
                    Ok(None) => return Err(Ended::Later(format!("the mirror of {table} is not complete"))),
                    Err(error) => return Err(Ended::Later(error.to_string())),
                }
            }
        };
        timeout(MIRROR_WAIT, opened).await.unwrap_or_else(|_| Err(closed()))
    }

    /// What the log says of rows that were replaced before the mirror was read.
    async fn replaced(
        &mut self,
        (of, table): (For, &TableName),
        gathering: &mut Gathering,
        (place, mirror): (Place, Position),
    ) -> Result<Versions, Ended> {
        let (mut versions, mut changes) = (Versions::behind(self.at), TableChanges::of(table));
        let mirror = mirror.as_resume_point();
        let mut reader = self.handle.store.reader_behind(self.epoch, place)?;
        let (shared, store, start) = (Arc::clone(&self.shared), self.handle.store.clone(), self.start);
        let mut reached = self.at;
        while reached < mirror {
            let block = reader.next().await?;
            {
                let published = shared.read();
                let consumer = self.consumer(of);
                changes.each((&block, start, mirror), &store, |step: Step<'_>| {
                    versions.step(step, &mut |version| gathering.visit(version, consumer, &published.sets))
                })?;
            }
            if versions.byte_count() > TOUCHED_BYTES_MAX {
                return Err(Ended::TooMuch { table: table.clone(), bytes_max: TOUCHED_BYTES_MAX });
            }
            reached = block.complete_through().map_or(reached, Position::as_resume_point).max(reached);
            tokio::task::coop::consume_budget().await;
        }
        Ok(versions)
    }

    /// The rows that are still there.
    async fn remaining(
        &mut self,
        of: For,
        mut gathering: Gathering,
        (versions, scan, permit): (Versions, Scan, OwnedSemaphorePermit),
    ) -> Result<Gathering, Ended> {
        let mut consumer = self.consumer(of).clone();
        let (shared, through) = (Arc::clone(&self.shared), gathering.through);
        let look = move || {
            let _permit = permit;
            let published = shared.read();
            let mut known = None;
            for row in scan {
                let row = row.map_err(|error| Ended::Later(error.to_string()))?;
                let row_type = match known.take().filter(|(number, _)| *number == row.row_type) {
                    Some((_, row_type)) => row_type,
                    None => {
                        let found = gathering.store.row_type(row.row_type);
                        found.ok_or_else(|| Ended::Later(format!("row type {} is not known", row.row_type)))?
                    }
                };
                let key = key_of(&row.row, row_type.key())?;
                let whole = row.missing.is_empty().then_some((&row_type, &row.row[..]));
                gathering.visit(versions.last(&key, whole, through), &mut consumer, &published.sets)?;
                known = Some((row.row_type, row_type));
            }
            Ok(gathering)
        };
        let looked = tokio::task::spawn_blocking(look).await;
        looked.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
    }
}

/// How much of the log the next run takes. A look at a table costs the same for a long run as for a short one, but what it finds has to
/// fit into what is kept, for those who have not passed the run.
fn next_run(run_bytes: usize, found_bytes: Option<usize>) -> usize {
    match found_bytes {
        Some(found) if found <= KEPT_BYTES_MAX / 8 => RUN_BYTES_MAX.min(2 * run_bytes),
        Some(found) if found <= KEPT_BYTES_MAX / 4 => run_bytes,
        Some(found) if found <= KEPT_BYTES_MAX => RUN_BYTES.max(run_bytes / 2),
        Some(_) | None => RUN_BYTES,
    }
}

/// Resolves when one of these tables is not among the source's any more: of a dropped or renamed one, no change says so.
async fn gone(mut known: watch::Receiver<Arc<Vec<KnownTable>>>, names: Vec<TableName>) -> TableName {
    let missing =
        |known: &Vec<KnownTable>| names.iter().find(|name| known.iter().all(|table| table.name != **name)).cloned();
    // The catalog may not have been read yet.
    let gone = known.wait_for(|known| !known.is_empty() && missing(known).is_some()).await.ok();
    match gone.and_then(|known| missing(&known)) {
        Some(table) => table,
        None => std::future::pending().await,
    }
}

/// Resolves when there has been no user for a while.
async fn unused(shared: Arc<Shared>) {
    let mut progress = shared.progress.subscribe();
    loop {
        let nobody = progress.wait_for(|progress| progress.users == 0).await.is_ok();
        assert!(nobody, "the sender lives as long as what is shared");
        // Others may need the room.
        let other = progress.wait_for(|progress| progress.users > 0 || progress.ended.is_some());
        let _changed = timeout(LINGER, other).await.is_ok();
        if shared.end_unused() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_grow_while_each_looks_and_finds_little() {
        let found = |found| move |run: &usize| Some(next_run(*run, Some(found)));
        let grown = std::iter::successors(Some(RUN_BYTES), found(1_000)).nth(9);
        assert_eq!(grown, Some(RUN_BYTES_MAX));
        assert_eq!(next_run(RUN_BYTES_MAX, None), RUN_BYTES);
        let shrunk = std::iter::successors(grown, found(KEPT_BYTES_MAX / 2)).nth(9);
        assert_eq!(shrunk, Some(RUN_BYTES));
        assert_eq!(next_run(RUN_BYTES_MAX, Some(usize::MAX)), RUN_BYTES);
    }
}
