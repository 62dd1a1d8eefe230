//! The task that keeps the sets of one shape: builds them where its first subscription begins, and follows the log from there.
//!
//! ```text
//! log ── blocks ──▶ inner sets ──▶ outer sets ──▶ the shape ──▶ published, with the place up to which all is known
//!                       flips ──scan──▶  flips ──scan──▶ what moves
//! ```
//!
//! Where sets have flipped in a run of blocks, the rows of the table that they concern are read from the mirror once, as it is by then, and the log
//! up to there says what they were before. So the cost of a scan is shared by all transactions of the run, which grows with the load.

use std::sync::{Arc, Weak};

use tidegate_model::{Block, Epoch, Position, TableName};
use tidegate_store::{MirrorError, Place, Reader, Scan};
use tokio::time::timeout;

use super::{
    Ended, KEPT_BYTES_MAX, LINGER, MIRROR_WAIT, SET_BYTES_MAX, TOUCHED_BYTES_MAX,
    changes::{Step, TableChanges, key_of},
    consumer::Consumer,
    gathering::{Gathering, Wanted},
    keeper::{Moved, Record, Shared},
    node::{Moves, Node},
    versions::Versions,
};
use crate::source::{Source, SourceHandle};

/// Blocks that are taken at a time, in bytes.
const RUN_BYTES: usize = 4 << 20;

/// The task's own.
pub(super) struct Keeping {
    pub(super) shared: Arc<Shared>,
    pub(super) handle: SourceHandle,
    pub(super) source: Weak<Source>,
    pub(super) epoch: Epoch,
    /// In the order of the shared sets: those within others first.
    pub(super) nodes: Vec<Node>,
    pub(super) shape: Consumer,
    pub(super) reader: Reader,
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
            let found = self.scan(For::Node(number), Wanted::Selected, (place, self.at)).await?;
            let mut published = self.shared.write();
            self.nodes[number].begin(found, &mut published.sets.sets[number]);
            drop(published);
            self.check_size()?;
        }
        self.show();
        let mut unused = std::pin::pin!(unused(Arc::clone(&self.shared)));
        loop {
            let place = self.reader.place();
            let block = tokio::select! {
                biased;
                block = self.reader.next() => block?,
                () = &mut unused => return Ok(()),
            };
            let mut run = vec![block];
            let mut byte_count = run[0].byte_count();
            // What ends the log is met again behind what it has.
            while byte_count < RUN_BYTES
                && let Ok(Some(block)) = self.reader.try_next()
            {
                byte_count += block.byte_count();
                run.push(block);
            }
            self.take(&run, place).await?;
            self.show();
            tokio::task::coop::consume_budget().await;
        }
    }

    fn show(&self) {
        let place = self.reader.place();
        self.shared.progress.send_modify(|progress| progress.place = Some(place));
    }

    /// A run of blocks, behind a place.
    async fn take(&mut self, run: &[Block], place: Place) -> Result<(), Ended> {
        let complete = run.iter().rev().find_map(Block::complete_through);
        let through = complete.map_or(self.at, Position::as_resume_point).max(self.at);
        for number in 0..self.nodes.len() {
            let moves = self.moves(For::Node(number), (place, through)).await?;
            let node = &mut self.nodes[number];
            let effects = {
                let published = self.shared.read();
                node.effects((run, self.start), moves, (&published.sets, &self.handle.store))?
            };
            let mut published = self.shared.write();
            effects.into_iter().for_each(|effect| node.apply(effect, &mut published.sets.sets[number]));
        }
        match self.moves(For::Shape, (place, through)).await {
            Ok(moves) => self.record(run, moves),
            // Who has that behind him goes on.
            Err(Ended::TooMuch { .. } | Ended::Lost(_)) => self.shared.write().forget_through(through),
            Err(ended) => return Err(ended),
        }
        self.at = through;
        self.shared.write().keep_bytes(KEPT_BYTES_MAX);
        self.check_size()
    }

    fn check_size(&self) -> Result<(), Ended> {
        let rows = self.nodes.iter().map(Node::byte_count).sum::<usize>();
        let sets = self.shared.read().sets.sets.iter().map(super::set::Set::byte_count).sum::<usize>();
        match self.nodes.first() {
            Some(first) if rows + sets > SET_BYTES_MAX => {
                Err(Ended::TooLarge { table: first.consumer.table().clone(), bytes_max: SET_BYTES_MAX })
            }
            Some(_) | None => Ok(()),
        }
    }

    /// What moves within a run, for nothing but the subqueries.
    async fn moves(&mut self, of: For, (place, through): (Place, Position)) -> Result<Moves, Ended> {
        let (shared, behind) = (Arc::clone(&self.shared), self.at);
        let flipped = shared.read().sets.have_flipped(self.consumer(of).subqueries(), behind, through);
        if flipped { self.scan(of, Wanted::Moves, (place, through)).await } else { Ok(Moves::new()) }
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
    async fn scan(&mut self, of: For, wanted: Wanted, (place, through): (Place, Position)) -> Result<Moves, Ended> {
        let keeps_rows = matches!(of, For::Shape);
        let mut gathering = Gathering {
            wanted,
            behind: self.at,
            through,
            keeps_rows,
            store: self.handle.store.clone(),
            found: Moves::new(),
            byte_count: 0,
            bytes_max: if keeps_rows { KEPT_BYTES_MAX } else { SET_BYTES_MAX },
            room: Vec::new(),
        };
        let table = self.consumer(of).table().clone();
        let scan = self.rows(&table, through).await?;
        let versions = self.replaced((of, &table), &mut gathering, (place, scan.position())).await?;
        self.remaining(of, gathering, (versions, scan)).await
    }

    /// The table's rows as the mirror has them, no earlier than this.
    async fn rows(&self, table: &TableName, through: Position) -> Result<Scan, Ended> {
        let closed = || Ended::Later("the mirror is being opened".to_owned());
        let mirror = self.handle.mirror.clone().ok_or_else(closed)?;
        let mut positions = mirror.positions();
        let opened = async {
            loop {
                let there = positions.wait_for(|position| position.as_resume_point() >= through).await.is_ok();
                assert!(there, "the sender lives as long as the handle");
                let (mirror, name) = (mirror.clone(), table.clone());
                let scan = move || {
                    let known = mirror.tables()?.into_iter().find(|known| known.name == name && known.complete);
                    known.map(|known| mirror.scan(known.table_oid)).transpose()
                };
                let scanned = tokio::task::spawn_blocking(scan).await;
                match scanned.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic())) {
                    Ok(Some(scan)) if scan.position().as_resume_point() >= through => return Ok(scan),
                    // It is opened again.
                    Ok(Some(_)) | Err(MirrorError::Closed) => tokio::task::yield_now().await,
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
        (versions, scan): (Versions, Scan),
    ) -> Result<Moves, Ended> {
        let mut consumer = self.consumer(of).clone();
        let (shared, through) = (Arc::clone(&self.shared), gathering.through);
        let look = move || {
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
            Ok(gathering.found)
        };
        let looked = tokio::task::spawn_blocking(look).await;
        looked.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
    }
}

/// Resolves when there has been no user for a while.
async fn unused(shared: Arc<Shared>) {
    let mut progress = shared.progress.subscribe();
    loop {
        let nobody = progress.wait_for(|progress| progress.users == 0).await.is_ok();
        let someone = timeout(LINGER, progress.wait_for(|progress| progress.users > 0)).await.is_ok();
        if nobody && someone {
            continue;
        }
        let ends = |progress: &mut super::keeper::Progress| {
            if progress.users == 0 && progress.ended.is_none() {
                let why = "nobody has needed the subqueries' sets for a while".to_owned();
                progress.ended = Some(Arc::new(Ended::Later(why)));
            }
            progress.users == 0
        };
        if shared.progress.send_if_modified(ends) {
            return;
        }
    }
}
