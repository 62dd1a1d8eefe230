//! What the images of keys become, case by case; the simulation tells whether it adds up.

use bytes::BytesMut;
use tidegate_schema::wire::put_len_field;

use super::*;
use tidegate_schema::Extra;

const ROW_TYPE: u32 = 9;
/// The TOASTed field.
const LARGE: u32 = 3;
const LIMITS: Limits = Limits { image_bytes: 1 << 20, gap_bytes: 1 << 20 };

/// A key, a small field, and perhaps the large one.
fn row(key: &str, small: &str, large: Option<&str>) -> BytesMut {
    let mut out = BytesMut::new();
    put_len_field(&mut out, 1, key.as_bytes());
    put_len_field(&mut out, 2, small.as_bytes());
    large.into_iter().for_each(|large| put_len_field(&mut out, LARGE, large.as_bytes()));
    out
}

fn key(key: &str) -> BytesMut {
    let mut out = BytesMut::new();
    put_len_field(&mut out, 1, key.as_bytes());
    out
}

fn tracked(limits: Limits) -> Touched {
    Touched::new([1].into_iter().collect(), limits, Vec::new(), Gaps::default(), false)
}

fn sees(text: &str) -> Visibility {
    text.parse().expect("a snapshot")
}

impl Touched {
    fn write(&mut self, xid: u32, op: Op, old: Option<&str>, new: Option<(&str, &str, Option<&str>)>) {
        let old_row = old.map(key).unwrap_or_default();
        let new_row = new.map(|(key, small, large)| row(key, small, large)).unwrap_or_default();
        let unchanged: &[u32] = if new.is_some_and(|new| new.2.is_none()) { &[LARGE] } else { &[] };
        let old_kind = if old.is_some() { OldKind::Key } else { OldKind::None };
        let (row_type, extra) = (ROW_TYPE, Extra::None);
        let change = ChangeParts { op, row_type, row: &new_row, old: &old_row, old_kind, unchanged, extra };
        self.change(xid, &change);
    }

    fn fate_of(&self, name: &str, visibility: &str) -> Fate {
        self.fate(&key(name), &row(name, "chunk", Some("chunk's")), &sees(visibility))
    }
}

fn replaced(name: &str, small: &str, large: &str) -> Fate {
    Fate::Replace { row_type: ROW_TYPE, row: row(name, small, Some(large)).to_vec() }
}

#[test]
fn a_row_stays_where_its_newest_writer_is_seen() {
    let mut touched = tracked(LIMITS);
    touched.write(10, Op::Update, None, Some(("a", "1", Some("x"))));
    assert!(touched.is_clean_for(&sees("11:11:")) && !touched.is_clean_for(&sees("10:11:10")));
    assert_eq!(touched.fate_of("a", "11:11:"), Fate::Keep);
    assert_eq!(touched.fate_of("a", "10:12:10"), replaced("a", "1", "x"));
    assert_eq!(touched.fate_of("b", "10:12:10"), Fate::Keep);
}

#[test]
fn what_an_update_left_unchanged_comes_from_the_image_before_or_from_the_chunk() {
    let mut touched = tracked(LIMITS);
    touched.write(10, Op::Insert, None, Some(("a", "1", Some("x"))));
    touched.write(11, Op::Update, None, Some(("a", "2", None)));
    touched.write(11, Op::Update, None, Some(("b", "3", None)));
    touched.write(12, Op::Update, None, Some(("b", "4", None)));
    assert_eq!(touched.fate_of("a", "10:10:"), replaced("a", "2", "x"));
    assert_eq!(touched.fate_of("b", "10:10:"), replaced("b", "4", "chunk's"));
    assert!(touched.gaps().is_empty());
}

#[test]
fn of_a_part_what_may_come_to_meet_its_condition_without_a_value_is_read_again() {
    let mut touched = tracked(LIMITS).covering(Covers::Condition);
    touched.write(10, Op::Update, None, Some(("a", "1", Some("x"))));
    touched.write(11, Op::Update, None, Some(("a", "2", None)));
    assert!(touched.gaps().is_empty(), "all of it was told");
    touched.write(12, Op::Update, None, Some(("b", "3", None)));
    assert_eq!(touched.gaps().keys(9), [key("b")[..].into()]);
    touched.write(13, Op::Update, None, Some(("b", "4", Some("y"))));
    assert!(touched.gaps().is_empty());
}

#[test]
fn of_a_part_the_end_of_the_pass_says_nothing_of_the_key_that_a_row_had() {
    for (covers, expected) in [(Covers::All, 0), (Covers::Condition, 1), (Covers::Keys, 1)] {
        let mut touched = tracked(LIMITS).covering(covers);
        touched.pass_done();
        touched.write(10, Op::Update, Some("a"), Some(("b", "1", None)));
        assert_eq!(touched.gaps().keys(9).len(), expected, "{covers:?}");
    }
    let mut touched = tracked(LIMITS).covering(Covers::Keys);
    touched.write(10, Op::Update, None, Some(("a", "1", None)));
    assert!(touched.gaps().is_empty(), "a row that is there is read whole, or is not asked for");
}

#[test]
fn a_row_that_moved_takes_its_image_along_and_its_gaps_are_read_again() {
    let mut touched = tracked(LIMITS);
    touched.write(10, Op::Insert, None, Some(("a", "1", Some("x"))));
    touched.write(11, Op::Update, Some("a"), Some(("b", "2", None)));
    assert_eq!((touched.fate_of("a", "9:9:"), touched.fate_of("b", "9:9:")), (Fate::Gone, replaced("b", "2", "x")));
    assert!(touched.gaps().is_empty());
    touched.write(12, Op::Update, Some("c"), Some(("d", "3", None)));
    assert_eq!(touched.gaps().keys(9), [key("d")[..].into()]);
    // Another row may have been at this key when the chunk was read.
    assert_eq!(touched.fate_of("d", "12:12:"), Fate::Incomplete);
    touched.write(13, Op::Update, None, Some(("d", "4", None)));
    assert_eq!(touched.fate_of("d", "12:12:"), Fate::Incomplete);
    assert_eq!(touched.fate_of("d", "13:13:"), replaced("d", "4", "chunk's"));
    touched.write(14, Op::Update, Some("d"), Some(("e", "5", None)));
    assert_eq!(touched.gaps().keys(9), [key("e")[..].into()]);
    touched.write(15, Op::Update, None, Some(("e", "6", Some("y"))));
    assert!(touched.gaps().is_empty());
}

#[test]
fn a_row_that_entered_without_its_value_is_read_again_until_it_leaves() {
    let mut touched = tracked(LIMITS);
    touched.write(10, Op::Insert, None, Some(("a", "1", None)));
    assert!(touched.gaps_mut().take_unrecorded() && !touched.gaps().is_empty());
    touched.write(11, Op::Delete, Some("a"), None);
    assert!(touched.gaps().is_empty());
    assert_eq!(touched.fate_of("a", "11:11:"), Fate::Gone);
}

#[test]
fn after_the_pass_only_what_is_held_incomplete_is_carried_on() {
    let mut touched = tracked(LIMITS);
    touched.write(10, Op::Insert, None, Some(("a", "1", None)));
    touched.pass_done();
    touched.write(11, Op::Update, Some("whole"), Some(("b", "2", None)));
    assert_eq!(touched.gaps().keys(9), [key("a")[..].into()]);
    touched.write(12, Op::Update, Some("a"), Some(("c", "3", None)));
    assert_eq!(touched.gaps().keys(9), [key("c")[..].into()]);
}

#[test]
fn a_truncate_empties_the_chunks_that_do_not_see_it() {
    let mut touched = tracked(LIMITS);
    touched.write(10, Op::Insert, None, Some(("a", "1", None)));
    touched.write(11, Op::Truncate, None, None);
    touched.write(11, Op::Insert, None, Some(("b", "2", Some("y"))));
    assert!(touched.gaps().is_empty());
    assert_eq!((touched.fate_of("a", "11:11:"), touched.fate_of("z", "11:11:")), (Fate::Gone, Fate::Gone));
    assert_eq!(touched.fate_of("b", "11:11:"), replaced("b", "2", "y"));
    assert_eq!((touched.fate_of("a", "12:12:"), touched.fate_of("b", "12:12:")), (Fate::Keep, Fate::Keep));
}

#[test]
fn over_the_budget_the_writers_of_what_was_given_up_must_be_seen() {
    let mut touched = tracked(Limits { image_bytes: 3 * IMAGE_BYTES, gap_bytes: 1 << 20 });
    touched.write(10, Op::Insert, None, Some(("a", "1", Some("x"))));
    for name in ["b", "c", "d", "e"] {
        touched.write(11, Op::Insert, None, Some((name, "1", Some("x"))));
    }
    touched.write(12, Op::Insert, None, Some(("f", "1", Some("x"))));
    assert!(touched.hides(&sees("10:13:10")) && touched.hides(&sees("11:13:11")) && !touched.hides(&sees("12:13:12")));
    assert_eq!(touched.fate_of("f", "12:12:"), replaced("f", "1", "x"));
    assert!(touched.image_bytes < 3 * IMAGE_BYTES);
    touched.prune(&sees("12:12:"));
    assert!(!touched.hides(&sees("10:10:")));
}

#[test]
fn too_many_gaps_ask_for_another_pass() {
    let mut touched = tracked(Limits { image_bytes: 1 << 20, gap_bytes: 150 });
    for name in ["a", "b", "c", "d"] {
        touched.write(10, Op::Insert, None, Some((name, "1", None)));
    }
    assert!(touched.gaps().wants_another_pass() && touched.gaps().keys(9).is_empty());
    touched.restart_pass();
    assert!(touched.gaps().is_empty() && !touched.is_pass_done());
}

#[test]
fn what_every_chunk_sees_is_forgotten_and_its_memory_counted() {
    let mut touched = tracked(LIMITS);
    for n in 0..3_000 {
        touched.write(10 + n % 2, Op::Insert, None, Some((&n.to_string(), "1", Some("x"))));
    }
    touched.prune(&sees("11:11:"));
    assert_eq!((touched.images.len(), touched.is_clean_for(&sees("12:12:"))), (1_500, true));
    assert_eq!(
        touched.image_bytes,
        touched.images.iter().map(|(key, image)| byte_count(key, image.row.as_ref())).sum()
    );
    touched.write(12, Op::Truncate, None, None);
    assert_eq!(touched.image_bytes, 0);
}

#[test]
fn another_key_is_noticed() {
    let mut touched = tracked(LIMITS);
    touched.keyed_by(&[1].into_iter().collect());
    assert!(!touched.is_rekeyed());
    touched.keyed_by(&[1, 2].into_iter().collect());
    assert!(touched.is_rekeyed());
}
