//! What tells a snapshot out of the mirror: its number, and the positions that tokens within it have.
//!
//! ```text
//! ordinal   0 … 2^30-3 | 2^30-2            | 2^30    | 2^30+1            | 2^31   | …                | E   | …     | 3·2^30 …
//!           changes    | a commit, within  | message | a message, within | opened | begin and chunks | end | turns | chunks in the log
//! ```
//!
//! Behind the end of a snapshot, and before what the log has of snapshots, there is room for turns: where a subscription goes on with other
//! definitions of its shapes ([`crate::redefinition`]).
//!
//! A token of a subscription that started from such a snapshot has its number in the prefix, to the end of the subscription; so the
//! position has to say whether the snapshot had ended. While it lasts, the ends of transactions and messages state another ordinal
//! than they have, which as a place to resume after means the same, and what other snapshots have at an LSN is stated as a chunk is.
//! The changes of transactions have the positions that they have everywhere. The end stands where the log is, so that whatever follows it
//! there has a later position.

use tidegate_model::{Clock, LOGGED_SNAPSHOT_ORDINAL, Lsn, MESSAGE_ORDINAL, Position, SNAPSHOT_ORDINAL};

/// Numbers from here on are of snapshots out of the mirror; the others are counted from 1.
const NUMBER: u32 = 1 << 31;
/// The first ordinal of such a snapshot: of its opening.
const OPENED: u32 = SNAPSHOT_ORDINAL;
/// Chunks begin to be counted below this; as many are left for one state.
const FIRST_CHUNKS: u32 = 1 << 29;
/// The last of its chunks'.
const CHUNK_MAX: u32 = END - 1;
/// Where as many chunks are left as any state has. No server states a later position within.
const GOES_ON_MAX: u32 = CHUNK_MAX - (1 << 28);
/// Of its end, where the log has nothing of snapshots at the LSN so far.
const END: u32 = LOGGED_SNAPSHOT_ORDINAL - 1 - TURNS;
/// At one LSN.
const TURNS: u32 = 1 << 16;
/// Of the end of a transaction within it.
const COMMIT: u32 = MESSAGE_ORDINAL - 2;
/// Of a message within it.
const MESSAGE: u32 = MESSAGE_ORDINAL + 1;

/// A number for a snapshot that begins now. It is for people: nothing is found by it.
pub(crate) fn number(clock: &dyn Clock) -> u32 {
    NUMBER | (clock.now_us() / 1000) as u32
}

/// Where the chunks of a connection begin to be counted. A chunk that a lost connection has cut off must not be taken for another
/// one at its position: later connections count from higher numbers on, faster than chunks are read.
pub(crate) fn first_chunk(clock: &dyn Clock) -> u32 {
    OPENED + 2 + ((clock.now_us() / 100) as u32 & (FIRST_CHUNKS - 1))
}

/// Is it the number of a snapshot out of the mirror?
pub(crate) fn is_of_mirror(snapshot: u32) -> bool {
    snapshot >= NUMBER
}

/// Had the snapshot not ended where a token of its subscription states this position?
pub(crate) fn is_within(position: Position) -> bool {
    matches!(position.ordinal, COMMIT | MESSAGE | OPENED..=CHUNK_MAX)
}

/// Is there room for the chunks behind a position within? Where there is none, no server has stated it.
pub(crate) fn has_room(position: Position) -> bool {
    position.ordinal <= GOES_ON_MAX
}

/// Where a subscription is that is to begin with a snapshot, and has all up to an LSN.
pub(crate) fn opened(lsn: Lsn) -> Position {
    Position::new(lsn, OPENED)
}

/// Where the log is read on from, of which `earliest` is kept, for a subscription that states this position: what other snapshots have at its
/// LSN comes again. A client that has nothing yet needs none of that.
pub(crate) fn read_from(position: Position, earliest: Position) -> Position {
    let from = log_position(Position::new(position.lsn, 0));
    if has_begun(position) || earliest.lsn != position.lsn { from } else { from.max(earliest) }
}

/// How far the log is that has come to this position, its own or one that a subscription was told: what is of no snapshot in the log at an
/// LSN counts as one place.
pub(crate) fn log_position(position: Position) -> Position {
    if position.ordinal >= LOGGED_SNAPSHOT_ORDINAL {
        return position;
    }
    Position { ordinal: SNAPSHOT_ORDINAL - 1, ..position }
}

/// Of a turn where the log is at this place, behind the last position that was stated. None where nothing can stand there: the log has
/// something of snapshots, or there have been too many turns.
pub(crate) fn turn(at: Position, last: Position) -> Option<Position> {
    let behind = if last.lsn == at.lsn { last.ordinal.saturating_add(1) } else { 0 };
    let ordinal = behind.max(END + 1);
    (at.ordinal.max(ordinal) < LOGGED_SNAPSHOT_ORDINAL).then(|| Position::new(at.lsn, ordinal))
}

/// Of the snapshot's begin.
pub(super) fn begin(lsn: Lsn) -> Position {
    Position::new(lsn, OPENED + 1)
}

/// Has the subscription that states this position been told of the snapshot's begin?
pub(super) fn has_begun(position: Position) -> bool {
    position.ordinal != OPENED
}

/// Of a chunk, or of what another snapshot has, behind the last position that was stated.
pub(super) fn chunk(lsn: Lsn, last: Position, first: u32) -> Position {
    let is_behind = last.lsn == lsn && last.ordinal >= OPENED;
    let ordinal = if is_behind { first.max(last.ordinal + 1) } else { first };
    assert!(ordinal <= CHUNK_MAX, "some 2^29 chunks of one state are more than a disk holds");
    Position::new(lsn, ordinal)
}

/// Of the snapshot's end, where the log has come so far.
pub(super) fn end(at: Position) -> Position {
    Position { ordinal: at.ordinal.max(END), ..at }
}

/// What the end of a transaction or message, or progress, states within the snapshot.
pub(super) fn within(position: Position) -> Position {
    let ordinal = if position.ordinal < MESSAGE_ORDINAL { COMMIT } else { MESSAGE };
    Position::new(position.lsn, ordinal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stated_within_is_told_from_everything_else_and_means_the_same_place() {
        let at = |ordinal| Position::new(Lsn(8), ordinal);
        let logged = LOGGED_SNAPSHOT_ORDINAL;
        let elsewhere = [0, 1, 5_000_000, MESSAGE_ORDINAL - 1, MESSAGE_ORDINAL, END, logged, logged + 9, u32::MAX];
        assert!(elsewhere.iter().all(|ordinal| !is_within(at(*ordinal))));
        let first = OPENED + 2 + FIRST_CHUNKS - 1;
        let chunk = |last| chunk(Lsn(8), last, first);
        let chunks = [chunk(at(3)), chunk(opened(Lsn(8))), chunk(chunk(at(3)))];
        let stated = [opened(Lsn(8)), begin(Lsn(8)), within(at(3)), within(at(MESSAGE_ORDINAL))];
        assert!(stated.iter().chain(&chunks).all(|position| is_within(*position)));
        assert_eq!(within(at(3)).as_resume_point(), at(3).as_resume_point());
        assert!(
            at(MESSAGE_ORDINAL) < within(at(MESSAGE_ORDINAL)) && within(at(MESSAGE_ORDINAL)) < at(SNAPSHOT_ORDINAL)
        );
        assert!(begin(Lsn(8)) < chunks[0] && chunks[0] < chunks[2] && chunks[2] < end(log_position(at(3))));
    }

    #[test]
    fn a_position_that_no_server_states_has_no_room_and_others_have_for_all_chunks_of_a_state() {
        let at = |ordinal| Position::new(Lsn(8), ordinal);
        assert!([CHUNK_MAX, GOES_ON_MAX + 1].iter().all(|ordinal| is_within(at(*ordinal)) && !has_room(at(*ordinal))));
        let first = OPENED + 2 + FIRST_CHUNKS - 1;
        assert!([COMMIT, MESSAGE, OPENED, first, first + (1 << 27)].iter().all(|ordinal| has_room(at(*ordinal))));
        assert!(is_within(chunk(Lsn(8), at(GOES_ON_MAX), first)));
    }

    #[test]
    fn an_end_stands_where_the_log_is_and_before_all_that_follows() {
        let at = |ordinal| Position::new(Lsn(8), ordinal);
        assert!([3, MESSAGE_ORDINAL].map(|ordinal| end(log_position(at(ordinal)))).iter().all(|end| *end == at(END)));
        assert!(end(at(END)) < at(LOGGED_SNAPSHOT_ORDINAL));
        assert_eq!(end(log_position(at(LOGGED_SNAPSHOT_ORDINAL + 5))), at(LOGGED_SNAPSHOT_ORDINAL + 5));
    }

    #[test]
    fn a_turn_stands_behind_all_that_was_stated_where_the_log_is_and_before_what_follows() {
        let at = |ordinal| Position::new(Lsn(8), ordinal);
        let place = log_position(at(3));
        let first = turn(place, at(3)).expect("there is room");
        assert!(first > end(place) && !is_within(first) && first < at(LOGGED_SNAPSHOT_ORDINAL));
        let second = turn(place, first).expect("there is room");
        assert!(second > first && log_position(second) == place);
        assert_eq!(turn(place, end(place)), Some(first));
        assert_eq!(turn(place, Position::new(Lsn(7), u32::MAX)), Some(first));
        assert_eq!(turn(place, at(LOGGED_SNAPSHOT_ORDINAL - 1)), None);
        assert_eq!(turn(at(LOGGED_SNAPSHOT_ORDINAL + 1), at(3)), None);
    }

    #[test]
    fn the_log_is_read_from_before_all_that_other_snapshots_have_there() {
        let at = |ordinal| Position::new(Lsn(8), ordinal);
        let chunk = chunk(Lsn(8), at(3), OPENED + 2);
        for earliest in [Position::ZERO, at(LOGGED_SNAPSHOT_ORDINAL + 3), Position::new(Lsn(9), 0)] {
            let from = read_from(chunk, earliest);
            assert!(from >= at(3).as_resume_point() && from < at(LOGGED_SNAPSHOT_ORDINAL));
        }
        assert_eq!(read_from(opened(Lsn(8)), at(LOGGED_SNAPSHOT_ORDINAL + 3)), at(LOGGED_SNAPSHOT_ORDINAL + 3));
        assert_eq!(read_from(opened(Lsn(8)), Position::new(Lsn(9), 0)), read_from(opened(Lsn(8)), Position::ZERO));
    }
}
