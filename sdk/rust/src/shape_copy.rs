//! The copy of a shape that a subscription keeps, and what its events do to it.
//!
//! ```text
//! SnapshotBegin ─▶ Reading: rows that nobody sees ─── SnapshotEnd ──▶ all at once: the rows
//! Begin, Change… ─▶ open ── Commit ──▶ all at once: into what is being read, or else into the rows
//! ```
//!
//! Rows that are held from before are in their place meanwhile. A snapshot that brings what differs from them begins to be read with those of
//! them that it does not replace, so that from there on it is one like any other.
//!
//! Invariant: what is seen is the state at a commit, or at a snapshot's end. Pure: no I/O, no clock.

use std::{mem, sync::Arc};

use crate::{Change, Difference, Event, RowChange, RowError, RowType, ShapeRows, held::Buckets};

/// Changes that are listed one by one; of more at once, the rows are told anew.
const LISTED_MAX: usize = 10_000;

/// What an event has done.
#[derive(Debug)]
pub(crate) enum Step {
    /// Nothing that is seen.
    Nothing,
    /// These rows.
    Changed(Vec<RowChange>),
    /// All rows, or too many to list.
    Replaced,
    /// What follows does not join up: read everything anew.
    StartOver,
}

/// What has come and is not seen yet.
#[derive(Debug, Default)]
pub(crate) struct ShapeCopy {
    phase: Phase,
    /// Of the transaction that has begun.
    open: Vec<Change>,
    /// Numbers of the key's fields.
    key: Vec<u32>,
    /// How the server was told what is held; None where it was not, and once it has begun with everything.
    held: Option<Buckets>,
    is_open: bool,
}

#[derive(Debug, Default)]
enum Phase {
    /// The snapshot has not begun: what comes is in its rows.
    #[default]
    Joining,
    /// It has not ended; its number, and its rows.
    Reading(u32, ShapeRows),
    /// The rows are those of the last commit.
    Whole,
}

impl ShapeCopy {
    /// Of a subscription that says what is held.
    pub(crate) fn holding(held: Option<Buckets>) -> Self {
        ShapeCopy { held, ..ShapeCopy::default() }
    }

    /// Are the rows of the moment, with all that has come?
    pub(crate) fn is_whole(&self) -> bool {
        matches!(self.phase, Phase::Whole) && self.open.is_empty()
    }

    /// Takes an event, of a subscription to one shape.
    pub(crate) fn take(&mut self, event: Event, rows: &mut Arc<ShapeRows>) -> Result<Step, RowError> {
        match event {
            Event::Begin { .. } | Event::Abort => self.open.clear(),
            Event::Change(change) => self.open.push(change),
            Event::Commit { .. } => return self.commit(rows),
            // A shape has one table.
            Event::SnapshotBegin { snapshot, partial, differences, .. } if partial.is_empty() => {
                self.phase = Phase::Reading(snapshot, self.kept(&differences, rows));
            }
            Event::SnapshotEnd { snapshot, .. } => {
                if let Phase::Reading(number, read) = &mut self.phase
                    && *number == snapshot
                {
                    *rows = Arc::new(mem::take(read));
                    (self.phase, self.held) = (Phase::Whole, None);
                    return Ok(Step::Replaced);
                }
            }
            Event::SnapshotAbandoned { .. } | Event::Reset { .. } => return Ok(Step::StartOver),
            // By token all rows would come.
            Event::Interrupted { .. } if self.held.is_some() && self.is_open => return Ok(Step::StartOver),
            Event::Opened { .. } => self.is_open = true,
            Event::SnapshotBegin { .. }
            | Event::Preparing { .. }
            | Event::RowType(_)
            | Event::Progress { .. }
            | Event::Drain { .. }
            | Event::Interrupted { .. } => {}
        }
        Ok(Step::Nothing)
    }

    /// What a snapshot that begins leaves in place.
    fn kept(&mut self, differences: &[Difference], rows: &ShapeRows) -> ShapeRows {
        // A shape's subscription has one selection.
        let kept = self.held.zip(differences.first()).map(|(held, difference)| held.kept(rows, difference));
        self.held = self.held.filter(|_| kept.is_some());
        let rows = kept.unwrap_or_default();
        if let Some(row) = rows.iter().next() {
            self.key = key_fields(row.row_type());
        }
        rows
    }

    fn commit(&mut self, seen: &mut Arc<ShapeRows>) -> Result<Step, RowError> {
        let changes = mem::take(&mut self.open);
        for row_type in changes.iter().filter_map(|change| change.row_type.as_deref()) {
            let key = key_fields(row_type);
            if !self.key.is_empty() && self.key != key {
                // Rows that are held have keys of another kind.
                return Ok(Step::StartOver);
            }
            self.key = key;
        }
        if changes.is_empty() {
            return Ok(Step::Nothing);
        }
        let (rows, is_seen) = match &mut self.phase {
            Phase::Joining => return Ok(Step::Nothing),
            Phase::Reading(_, read) => (read, false),
            Phase::Whole => (Arc::make_mut(seen), true),
        };
        let (mut listed, mut are_all) = (Vec::new(), true);
        for change in changes {
            let changed = rows.apply(change)?;
            are_all &= listed.len() + changed.len() <= LISTED_MAX;
            if are_all && is_seen {
                listed.extend(changed);
            }
        }
        Ok(match (is_seen, are_all) {
            (false, _) => Step::Nothing,
            (true, true) if listed.is_empty() => Step::Nothing,
            (true, true) => Step::Changed(listed),
            (true, false) => Step::Replaced,
        })
    }
}

fn key_fields(row_type: &RowType) -> Vec<u32> {
    row_type.columns().iter().filter(|column| column.key).map(|column| column.field).collect()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::Value;

    use super::*;
    use crate::{
        Move, OldKind, Op, Position, Timestamp, Token,
        json::tests::{orders, row},
    };

    struct Scene {
        copy: ShapeCopy,
        rows: Arc<ShapeRows>,
    }

    fn token() -> Token {
        Token::new("p".into(), Position { lsn: 7, ordinal: 0 })
    }

    fn change(op: Op, new: Option<Bytes>, old: Option<Bytes>) -> Event {
        let old_kind = if old.is_some() { OldKind::Full } else { OldKind::None };
        Event::Change(Change {
            position: Position { lsn: 7, ordinal: 1 },
            op,
            selection: 0,
            row_type: Some(Arc::new(RowType::from(orders()))),
            row: new.unwrap_or_default(),
            old: old.unwrap_or_default(),
            old_kind,
            unchanged: Vec::new(),
            message: None,
            truncate: None,
            moved: Move::default(),
        })
    }

    impl Scene {
        fn new() -> Self {
            let mut scene = Scene { copy: ShapeCopy::default(), rows: Arc::default() };
            scene.take(Event::SnapshotBegin {
                snapshot: 3,
                tables: vec![],
                table_oids: vec![],
                partial: vec![],
                differences: vec![],
                token: token(),
            });
            scene
        }

        fn take(&mut self, event: Event) -> Step {
            self.copy.take(event, &mut self.rows).expect("valid")
        }

        fn transaction(&mut self, changes: Vec<Event>) -> Step {
            let position = Position { lsn: 7, ordinal: 0 };
            let commit_time = Timestamp::default();
            self.take(Event::Begin { position, commit_time, xid: 1, origin: String::new(), snapshot: 0 });
            for change in changes {
                assert!(matches!(self.take(change), Step::Nothing));
            }
            self.take(Event::Commit { token: token() })
        }

        fn end_snapshot(&mut self) -> Step {
            self.take(Event::SnapshotEnd { snapshot: 3, token: token() })
        }

        fn json(&self) -> Vec<String> {
            self.rows.iter().map(|row| Value::Object(row.json().expect("JSON")).to_string()).collect()
        }
    }

    #[test]
    fn a_snapshot_is_seen_at_its_end_and_a_transaction_at_its_commit() {
        let mut scene = Scene::new();
        scene.transaction(vec![change(Op::Read, Some(row(1, Some("9.50"))), None)]);
        scene.transaction(vec![change(Op::Insert, Some(row(2, None)), None)]);
        assert!(scene.rows.is_empty());
        assert!(matches!(scene.end_snapshot(), Step::Replaced));
        assert_eq!(scene.rows.len(), 2);
        let held = Arc::clone(&scene.rows);
        let step = scene.transaction(vec![
            change(Op::Update, Some(row(1, Some("8.00"))), None),
            change(Op::Delete, None, Some(row(2, None))),
        ]);
        assert!(matches!(step, Step::Changed(changes) if changes.len() == 2));
        assert_eq!(scene.json(), [r#"{"id":1,"Total Price":"8.00"}"#]);
        assert_eq!(held.len(), 2);
    }

    #[test]
    fn what_comes_before_the_snapshot_begins_is_not_applied_to_rows_of_before() {
        let mut scene = Scene::new();
        scene.transaction(vec![change(Op::Read, Some(row(1, Some("9.50"))), None)]);
        scene.end_snapshot();
        scene.copy = ShapeCopy::default();
        assert!(matches!(scene.transaction(vec![change(Op::Delete, None, Some(row(1, None)))]), Step::Nothing));
        assert!(!scene.copy.is_whole());
        assert_eq!(scene.rows.len(), 1);
    }

    #[test]
    fn an_update_of_the_key_moves_the_row() {
        let mut scene = Scene::new();
        scene.transaction(vec![change(Op::Read, Some(row(1, Some("9.50"))), None)]);
        scene.end_snapshot();
        scene.transaction(vec![change(Op::Update, Some(row(5, Some("9.50"))), Some(row(1, None)))]);
        assert_eq!(scene.json(), [r#"{"id":5,"Total Price":"9.50"}"#]);
    }

    #[test]
    fn what_was_not_sent_stays() {
        let mut scene = Scene::new();
        scene.transaction(vec![change(Op::Read, Some(row(1, Some("9.50"))), None)]);
        scene.end_snapshot();
        let Event::Change(mut update) = change(Op::Update, Some(row(1, None)), None) else { unreachable!("a change") };
        update.unchanged = vec![orders().columns[1].field];
        scene.transaction(vec![Event::Change(update)]);
        assert_eq!(scene.json(), [r#"{"id":1,"Total Price":"9.50"}"#]);
    }

    #[test]
    fn what_was_aborted_leaves_nothing_and_a_truncate_too() {
        let mut scene = Scene::new();
        scene.transaction(vec![change(Op::Read, Some(row(1, None)), None)]);
        scene.end_snapshot();
        scene.take(change(Op::Insert, Some(row(2, None)), None));
        assert!(!scene.copy.is_whole());
        scene.take(Event::Abort);
        assert!(scene.copy.is_whole());
        let step = scene.transaction(vec![change(Op::Truncate, None, None)]);
        assert!(matches!(step, Step::Changed(changes) if changes.len() == 1));
        assert!(scene.rows.is_empty());
    }

    #[test]
    fn a_key_of_another_kind_is_read_anew() {
        let mut scene = Scene::new();
        scene.transaction(vec![change(Op::Read, Some(row(1, None)), None)]);
        scene.end_snapshot();
        let Event::Change(mut other) = change(Op::Insert, Some(row(2, None)), None) else { unreachable!("a change") };
        let mut proto = orders();
        proto.columns[1].key = true;
        other.row_type = Some(Arc::new(RowType::from(proto)));
        assert!(matches!(scene.transaction(vec![Event::Change(other)]), Step::StartOver));
    }
}
