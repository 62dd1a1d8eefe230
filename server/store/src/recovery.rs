//! Brings the files of an epoch back to where a writer can go on.
//!
//! The newest segment is read whole: a torn tail is cut, and then everything behind the last commit or progress, back
//! through as many segments as an unfinished transaction fills. Older segments were fsynced before they were followed by
//! another, so they are trusted; their checksums are verified when they are read. What those say of snapshots stands in
//! the file `snapshots`.
//!
//! Invariant: what remains is a prefix of what was appended, ends with a complete position, is fsynced, and holds all that
//! was ever reported durable. Where that cannot be, bytes have changed on the disk, and it is an error, not a cut.

use std::{collections::VecDeque, fs, path::Path, sync::Arc};

use tidegate_model::{EpochInfo, Position, TransactionId};

use crate::{
    ReadError, Recovered, StoreConfig, StoreError,
    append::{Appender, LogEnd},
    layout::{self, cannot},
    log::{Log, completed},
    row_types::RowTypesFile,
    run,
    segment::{HEADER_BYTES, Segment},
    snapshots::SnapshotsFile,
    tail::Tail,
    transactions::Transactions,
};

/// Opens the current epoch's log; None for a store without an epoch, or whose epoch's directory was moved away because it
/// was damaged.
pub(crate) fn recover(config: &StoreConfig) -> Result<Option<(Appender, Recovered)>, StoreError> {
    let Some(epoch) = layout::read_manifest(&config.dir)? else { return Ok(None) };
    layout::remove_other_epochs(&config.dir, epoch.epoch)?;
    let epoch_dir = layout::epoch_dir(&config.dir, epoch.epoch);
    if !epoch_dir.exists() {
        tracing::warn!(dir = %epoch_dir.display(), "the changelog has been moved away; a new epoch has to begin");
        return Ok(None);
    }
    let mut segments = open_segments(&epoch_dir, &epoch)?;
    let origin = Position::end_of_transaction(epoch.start_lsn);
    let Cut { complete, mut last_transaction, snapshots } = cut_incomplete(&epoch_dir, &mut segments, origin)?;
    let row_types = RowTypesFile::open(&epoch_dir, complete)?;
    for segment in segments.iter().rev().skip(1) {
        if last_transaction.is_some() {
            break;
        }
        last_transaction = last_begun(segment)?;
    }
    let offset = segments.back().map_or(0, |segment| segment.end());
    let tail = Tail::new(config.tail_bytes, offset, complete);
    let segments = segments.into_iter().map(Arc::new).collect();
    let log = Arc::new(Log::new(epoch.epoch, origin, segments, tail));
    let end = LogEnd { offset, complete };
    let appender = Appender::new(log, (row_types, snapshots), epoch_dir, (config.segment_bytes, end));
    let delivered = run::delivered(&config.dir, complete)?;
    Ok(Some((appender, Recovered { epoch, durable: complete, delivered, last_transaction })))
}

/// The segments, oldest first, gapless.
fn open_segments(epoch_dir: &Path, epoch: &EpochInfo) -> Result<VecDeque<Segment>, StoreError> {
    let (mut segments, mut headless) = (Vec::new(), Vec::new());
    for path in layout::segment_paths(epoch_dir)? {
        match Segment::open(path.clone(), epoch.epoch)? {
            Some(segment) => segments.push(segment),
            None => headless.push(path),
        }
    }
    segments.sort_by_key(|segment| segment.base);
    // A crash between making the file and writing its header leaves one of these, without any record.
    for path in headless {
        fs::remove_file(&path).map_err(cannot("remove", &path))?;
    }
    for pair in segments.windows(2) {
        let [segment, next] = pair else { break };
        if segment.end() != next.base {
            let reason = "it does not start where the segment before it ends, which is missing or has another length";
            return Err(StoreError::Damaged { path: next.path.clone(), offset: 0, reason });
        }
    }
    Ok(segments.into())
}

/// What is left after the cut.
struct Cut {
    /// The position up to which all is there.
    complete: Position,
    /// The last transaction that began in the newest segment.
    last_transaction: Option<TransactionId>,
    snapshots: SnapshotsFile,
}

/// Cuts a torn tail and an unfinished transaction.
fn cut_incomplete(epoch_dir: &Path, segments: &mut VecDeque<Segment>, origin: Position) -> Result<Cut, StoreError> {
    let mut newest = true;
    while let Some(segment) = segments.back() {
        let kept = scan(segment, newest, SnapshotsFile::open(epoch_dir)?)?;
        let first = segments.len() == 1;
        if kept.complete.is_none() && !first {
            fs::remove_file(&segment.path).map_err(cannot("remove", &segment.path))?;
            layout::sync_dir(epoch_dir)?;
            segments.pop_back();
            newest = false;
            continue;
        }
        if kept.end < segment.end() {
            tracing::info!(
                segment = %segment.path.display(), bytes = segment.end() - kept.end,
                "cut what a crash has left of unfinished transactions; it comes again"
            );
        }
        segment.cut(kept.end)?;
        let complete = kept.complete.unwrap_or(segment.after);
        return Ok(Cut { complete, last_transaction: kept.transactions.newest(), snapshots: kept.snapshots });
    }
    Ok(Cut { complete: origin, last_transaction: None, snapshots: SnapshotsFile::default() })
}

/// What recovery keeps of a segment.
struct Kept {
    /// The last complete position; None if nothing in it is complete.
    complete: Option<Position>,
    end: u64,
    transactions: Transactions,
    snapshots: SnapshotsFile,
}

fn scan(segment: &Segment, may_be_torn: bool, snapshots: SnapshotsFile) -> Result<Kept, StoreError> {
    let end = segment.base + HEADER_BYTES;
    let mut kept = Kept { complete: None, end, transactions: Transactions::default(), snapshots };
    let mut frames = segment.frames(segment.base, segment.end());
    while let Some(frame) = frames.next() {
        match frame {
            Ok(placed) => {
                kept.transactions.observe(&placed.block)?;
                kept.snapshots.observe(&placed.block)?;
                if let Some(complete) = completed(&placed.block) {
                    kept.complete = Some(complete);
                    kept.end = placed.end;
                }
            }
            Err(ReadError::Damaged { .. }) if may_be_torn && !segment.was_synced(frames.at())? => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(kept)
}

/// The last transaction that began in an older segment: whatever follows has been cut to what is complete.
fn last_begun(segment: &Segment) -> Result<Option<TransactionId>, StoreError> {
    let mut transactions = Transactions::default();
    for placed in segment.frames(segment.base, segment.end()) {
        transactions.observe(&placed?.block)?;
    }
    Ok(transactions.begun().or(transactions.newest()))
}

#[cfg(test)]
#[path = "../tests/support/records.rs"]
mod records;

#[cfg(test)]
#[path = "../tests/support/row_types.rs"]
mod row_types;

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, os::unix::fs::FileExt, path::PathBuf, time::Duration};

    use proptest::prelude::*;
    use tidegate_model::{Block, Epoch, Lsn};

    use super::{
        records::{Progress, Record, blocks, complete, events, records, records_of, unfinished},
        row_types::{announcement, row_type},
        *,
    };
    use crate::{Retention, order::Order};

    const INFO: EpochInfo = EpochInfo { epoch: Epoch(3), system_identifier: 9, timeline: 1, start_lsn: Lsn(0x800) };

    /// What the disk does to what was not synced.
    #[derive(Clone, Debug)]
    enum Tear {
        Cut,
        Zeros,
        /// Of this length; what follows is intact.
        Hole(usize),
        Garbage(u8),
        Longer(Vec<u8>),
    }

    fn tears() -> impl Strategy<Value = Tear> {
        prop_oneof![
            Just(Tear::Cut),
            Just(Tear::Zeros),
            (1_usize..600).prop_map(Tear::Hole),
            (1..=255_u8).prop_map(Tear::Garbage),
            proptest::collection::vec(any::<u8>(), 1..100).prop_map(Tear::Longer),
        ]
    }

    fn config(dir: &Path, segment_bytes: u64) -> StoreConfig {
        let retention = Retention { size_bytes: u64::MAX, age: Duration::MAX };
        StoreConfig { dir: dir.to_owned(), segment_bytes, tail_bytes: 0, retention }
    }

    /// Appends each block, and syncs after those that `sync` says. The last synced complete position.
    fn append(appender: &mut Appender, order: &mut Order, blocks: &[Block], sync: &[bool]) -> Position {
        let mut durable = appender.complete();
        for (block, sync) in blocks.iter().zip(sync.iter().cycle()) {
            let parts = order.accept(block.clone()).unwrap();
            appender.append(&parts, 0).unwrap();
            if let Some(next) = appender.next_sync().filter(|_| *sync) {
                next.run().unwrap();
                appender.synced(next.end);
                durable = next.complete;
            }
        }
        durable
    }

    fn read_all(log: &Log) -> Vec<Record> {
        let segment_count = log.facts().len();
        let segments = log.take_oldest(segment_count);
        let frames = segments.iter().flat_map(|segment| segment.frames(segment.base, segment.end()));
        frames.flat_map(|placed| records_of(&placed.unwrap().block)).collect()
    }

    fn snapshots(appender: &Appender) -> BTreeMap<u32, Progress> {
        let known = appender.snapshots.known().iter();
        known.map(|(number, progress)| (*number, (progress.begin, progress.cursors.clone()))).collect()
    }

    fn tear(appender: &Appender, at: prop::sample::Index, tear: &Tear) {
        let Some(segment) = appender.log.newest_segment() else { return };
        let synced = segment.end() - appender.unsynced() - segment.base;
        let at = synced + at.index(usize::try_from(appender.unsynced()).unwrap() + 1) as u64;
        let end = segment.byte_count();
        let file = fs::File::options().write(true).open(&segment.path).unwrap();
        let left = usize::try_from(end - at).unwrap();
        match tear {
            Tear::Cut => file.set_len(at).unwrap(),
            Tear::Zeros => file.write_all_at(&vec![0; left], at).unwrap(),
            Tear::Hole(size) => file.write_all_at(&vec![0; left.min(*size)], at).unwrap(),
            Tear::Garbage(byte) => file.write_all_at(&vec![*byte; left], at).unwrap(),
            Tear::Longer(bytes) => file.write_all_at(bytes, end).unwrap(),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(120))]

        #[test]
        fn what_remains_is_complete_and_holds_all_that_was_durable(
            events in events(), block_bytes in 0_usize..3000, segment_bytes in 100_u64..8000, published in any::<prop::sample::Index>(),
            sync in proptest::collection::vec(prop::bool::weighted(0.1), 1..50), at in any::<prop::sample::Index>(), torn in tears(),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let config = config(dir.path(), segment_bytes);
            let all = records(&events);
            let blocks = blocks(&all, block_bytes);
            let mut appender = Appender::begin(dir.path(), &INFO, None, (segment_bytes, 0)).unwrap();
            let mut order = Order::new(appender.complete());
            let durable = append(&mut appender, &mut order, &blocks[..=published.index(blocks.len())], &sync);
            tear(&appender, at, &torn);
            drop(appender);

            let (mut appender, recovered) = recover(&config).unwrap().unwrap();
            prop_assert!(recovered.durable >= durable);
            let kept = all.partition_point(|record| record.0 <= recovered.durable);
            prop_assert_eq!(complete(&all[..kept]).len(), kept);
            let last = all[..kept].iter().rfind(|record| record.1 == tidegate_model::Kind::Begin && record.0.ordinal == 0);
            prop_assert_eq!(recovered.last_transaction.map(|transaction| transaction.commit_end_lsn), last.map(|record| record.0.lsn));

            prop_assert_eq!(snapshots(&appender), unfinished(&all[..kept]));

            // Capture publishes the rest again, cut otherwise.
            let rest = self::blocks(&all[kept..], block_bytes / 2);
            append(&mut appender, &mut Order::new(recovered.durable), &rest, &[false]);
            prop_assert!(read_all(&appender.log) == all);
            prop_assert_eq!(snapshots(&appender), unfinished(complete(&all)));
        }
    }

    /// A log with three transactions in one segment, all synced, and a fourth that is not. Its segment.
    fn synced_log(dir: &Path) -> PathBuf {
        let mut appender = Appender::begin(dir, &INFO, None, (1 << 20, 0)).unwrap();
        let events = vec![records::Event::Transaction(vec![100; 3]); 4];
        let mut order = Order::new(appender.complete());
        append(&mut appender, &mut order, &blocks(&records(&events), 0), &[true]);
        appender.log.newest_segment().unwrap().path.clone()
    }

    #[test]
    fn damage_to_what_was_synced_is_an_error_and_not_a_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = synced_log(dir.path());
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.write_all_at(&[0xff; 9], HEADER_BYTES + 3).unwrap();
        let error = recover(&config(dir.path(), 1 << 20)).unwrap_err();
        assert!(matches!(&error, StoreError::Damaged { offset: HEADER_BYTES, .. }), "{error}");
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        // The next step that it names.
        fs::rename(path.parent().unwrap(), dir.path().join("damaged")).unwrap();
        assert!(recover(&config(dir.path(), 1 << 20)).unwrap().is_none());
    }

    #[test]
    fn a_segment_of_another_version_is_refused_by_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = synced_log(dir.path());
        fs::File::options().write(true).open(&path).unwrap().write_all_at(&9_u32.to_le_bytes(), 4).unwrap();
        let refused = recover(&config(dir.path(), 1 << 20));
        assert!(matches!(refused, Err(StoreError::Version { found: 9, known: 1, .. })));
    }

    #[test]
    fn a_missing_segment_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let mut appender = Appender::begin(dir.path(), &INFO, None, (100, 0)).unwrap();
        let events = vec![records::Event::Transaction(vec![100; 3]); 4];
        let mut order = Order::new(appender.complete());
        append(&mut appender, &mut order, &blocks(&records(&events), 100), &[true]);
        let middle = appender.log.take_oldest(2).pop().unwrap();
        fs::remove_file(&middle.path).unwrap();
        assert!(matches!(recover(&config(dir.path(), 100)), Err(StoreError::Damaged { offset: 0, .. })));
    }

    /// What a crash takes at most.
    fn lose_unsynced(appender: Appender) {
        let segment = appender.log.newest_segment().unwrap();
        let file = fs::File::options().write(true).open(&segment.path).unwrap();
        file.set_len(segment.byte_count() - appender.unsynced()).unwrap();
    }

    /// The numbers of the newest row type of `public.orders`, of all that it has had, and of those that no record announces.
    fn numbers(appender: &Appender) -> (Option<u32>, Vec<u32>, Vec<u32>) {
        let (known, table) = (appender.row_types.known(), tidegate_model::TableName::new("public", "orders"));
        let number = |row_type: &Arc<tidegate_schema::RowType>| row_type.proto().row_type;
        let mut all: Vec<u32> = known.iter().map(number).collect();
        all.sort_unstable();
        (known.newest(&table).map(number), all, known.unannounced().map(number).collect())
    }

    #[test]
    fn a_row_type_whose_announcement_was_cut_off_is_none_of_its_table_until_it_is_announced_again() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), 1 << 20);
        let [first, second] = [row_type(1, &["id"]), row_type(2, &["id", "x"])];
        let mut appender = Appender::begin(dir.path(), &INFO, None, (1 << 20, 0)).unwrap();
        let mut order = Order::new(appender.complete());
        let kept = append(&mut appender, &mut order, &[announcement(0x1000, &first)], &[true]);
        append(&mut appender, &mut order, &[announcement(0x1010, &second), announcement(0x1020, &first)], &[false]);
        assert_eq!(numbers(&appender), (Some(1), vec![1, 2], vec![]));
        lose_unsynced(appender);

        let (mut appender, recovered) = recover(&config).unwrap().unwrap();
        assert_eq!((recovered.durable, numbers(&appender)), (kept, (Some(1), vec![1], vec![2])));
        let other = appender.append(&[announcement(0x1030, &row_type(2, &["id", "y"]))], 0).unwrap_err();
        assert!(matches!(other, StoreError::RowTypeReused { row_type: 2, .. }), "{other}");
        // The log comes to stand behind where it was announced.
        append(&mut appender, &mut Order::new(kept), &[announcement(0x1040, &first)], &[true]);
        drop(appender);

        let (mut appender, recovered) = recover(&config).unwrap().unwrap();
        assert_eq!(numbers(&appender), (Some(1), vec![1], vec![2]));
        let mut order = Order::new(recovered.durable);
        append(&mut appender, &mut order, &[announcement(0x1050, &second)], &[true]);
        assert_eq!(numbers(&appender), (Some(2), vec![1, 2], vec![]));
        append(&mut appender, &mut order, &[announcement(0x1060, &first)], &[false]);
        lose_unsynced(appender);

        // The table has not come back to the first.
        let (appender, _) = recover(&config).unwrap().unwrap();
        assert_eq!(numbers(&appender), (Some(2), vec![1, 2], vec![]));
    }

    #[test]
    fn a_segment_without_a_header_is_no_segment() {
        let dir = tempfile::tempdir().unwrap();
        let path = synced_log(dir.path());
        fs::write(path.with_file_name("ffffffffffffffff-00000000-00000000000fffff.log"), [0; 20]).unwrap();
        let (appender, _) = recover(&config(dir.path(), 1 << 20)).unwrap().unwrap();
        assert_eq!(appender.log.facts().len(), 1);
    }
}
