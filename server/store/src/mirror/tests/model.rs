//! A source with a few tables, the records that it makes, and what a mirror must make of them: rows, and filled changes.

use std::collections::BTreeMap;

use bytes::BytesMut;
use prost::Message as _;
use tidegate_model::{Kind, Lsn, Op, Position, SNAPSHOT_ORDINAL, TableName};
use tidegate_proto::v1;
use tidegate_schema::{ColumnSpec, OldKind, RowEncoder, RowTypeSpec, ScalarKind, Value, ValueKind};

use super::{
    super::snapshots::ChunkTable,
    records::{Parts, Record, entry},
};

/// Of the columns id (the key), a, big (may be left unchanged) and, in some row types, c. Not in column order.
pub(crate) const FIELDS: [u32; 4] = [3, 1, 2, 5];
pub(crate) const TABLES: usize = 3;

/// What happens to a row, or a table.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Insert {
        id: u8,
        value: u8,
        big: u8,
    },
    /// `big` None leaves it unchanged.
    Update {
        id: u8,
        value: u8,
        big: Option<u8>,
        new_id: Option<u8>,
    },
    Delete {
        id: u8,
    },
    Truncate,
}

/// What happens at one LSN.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    Transaction(Vec<(usize, Step)>),
    Progress,
    SnapshotBegin(Vec<usize>),
    /// A chunk of so many keys of the oldest snapshot that runs.
    Chunk(u8),
    /// It ends, when all is read, or is given up.
    SnapshotEnd {
        abandon: bool,
    },
    /// The table's row type gets another column, or loses it; what it holds may be there when it comes back, as where a publication
    /// has stopped to send it.
    Alter {
        table: usize,
        forgets: bool,
    },
    /// The table is dropped and created.
    Recreate(usize),
    /// The source's row goes without a record.
    Lose(usize, u8),
    /// It comes without a record.
    Gain(usize, u8),
}

/// A row's values: a, big, c.
pub(crate) type Values = (Option<String>, Option<String>, Option<String>);

/// A row as the mirror has it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Held {
    pub(crate) values: Values,
    pub(crate) columns: usize,
    pub(crate) big_missing: bool,
    generation: u32,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Table {
    pub(crate) oid: u32,
    pub(crate) row_type: u32,
    pub(crate) columns: usize,
    pub(crate) full: bool,
    source: BTreeMap<String, Values>,
    pub(crate) held: BTreeMap<String, Held>,
    pub(crate) complete: bool,
    generation: u32,
    passes: BTreeMap<u32, u32>,
    /// A snapshot runs that names it.
    pub(crate) is_being_read: bool,
    known: bool,
    /// The other row type that it has had.
    other: Option<u32>,
    /// The row type that the mirror has heard of last, and its columns.
    pub(crate) announced: (u32, usize),
    /// The generation in which the mirror has heard that c was gone.
    dropped: Option<u32>,
    /// It has taken the place of a complete one, and is not complete.
    told: bool,
    /// The table that it takes the place of, until the mirror hears of it, and the passes that can complete that.
    replaced: (u32, BTreeMap<u32, u32>),
}

#[derive(Clone, Debug)]
struct Pass {
    number: u32,
    /// Table, its OID at the first chunk, where the next chunk starts; None when all is read.
    tables: Vec<(usize, u32, Option<String>)>,
}

pub(crate) struct Model {
    pub(crate) tables: Vec<Table>,
    /// What comes, and what must leave: the same but for changes.
    pub(crate) raw: Vec<Record>,
    pub(crate) filled: Vec<Record>,
    /// The tables as they were at each end of something.
    pub(crate) states: BTreeMap<Position, Vec<Table>>,
    pub(crate) row_types: BTreeMap<u32, v1::RowType>,
    passes: Vec<Pass>,
    next: (u64, u32, u32),
}

pub(crate) fn table_name(at: usize) -> TableName {
    TableName::new("public", format!("table {at}"))
}

pub(crate) fn spec(row_type: u32, at: usize, oid: u32, columns: usize) -> RowTypeSpec {
    let column = |n: usize| ColumnSpec {
        name: ["id", "a", "big", "c"][n].to_owned(),
        attnum: n as i32 + 1,
        type_oid: 25,
        type_name: "text".to_owned(),
        codec: ValueKind::Scalar(ScalarKind::Text),
        key: n == 0,
        field: FIELDS[n],
    };
    RowTypeSpec {
        row_type,
        source: "shop".parse().unwrap(),
        name: table_name(at),
        table_oid: oid,
        identity: v1::ReplicaIdentity::Key,
        columns: (0..columns).map(column).collect(),
    }
}

/// A row as capture encodes it; `big` may be left out as unchanged, and all but the key as in a key.
pub(crate) fn encode(columns: usize, id: &str, values: Option<&Values>, big_unchanged: bool) -> Vec<u8> {
    let text = |value: &'_ Option<String>| value.clone();
    let none = (None, None, None);
    let (a, big, c) = values.unwrap_or(&none);
    let texts = [Some(id.to_owned()), text(a), text(big), text(c)];
    let values = texts[..columns].iter().enumerate().map(|(n, text)| match text {
        _ if n == 2 && big_unchanged => Value::Unchanged,
        Some(text) => Value::Text(text.as_bytes()),
        None => Value::Null,
    });
    let mut out = BytesMut::new();
    RowEncoder::new(&spec(1, 0, 1, columns).columns).encode(values, &mut out).unwrap();
    out.to_vec()
}

fn id(id: u8) -> String {
    format!("id {id}")
}

/// Some are null, some are cut into pieces.
fn big(value: u8) -> Option<String> {
    match value {
        0 => None,
        1..=3 => Some(value.to_string().repeat(300_000 * usize::from(value))),
        _ => Some(value.to_string().repeat(40)),
    }
}

impl Default for Model {
    fn default() -> Self {
        let table = |at: usize| Table {
            oid: 100 + at as u32,
            row_type: 1 + at as u32,
            columns: 3,
            full: at == 2,
            generation: 1,
            ..Table::default()
        };
        let mut model = Model {
            tables: (0..TABLES).map(table).collect(),
            raw: Vec::new(),
            filled: Vec::new(),
            states: BTreeMap::new(),
            row_types: BTreeMap::new(),
            passes: Vec::new(),
            next: (0x1000, 10, 1),
        };
        (0..TABLES).for_each(|at| model.describe(at));
        model
    }
}

impl Model {
    pub(crate) fn happen(&mut self, event: &Event) {
        match event {
            Event::Transaction(steps) => self.transaction(steps),
            Event::Progress => {
                let at = self.position(0);
                self.mark(at, Kind::Progress, 0, Vec::new());
            }
            Event::SnapshotBegin(tables) => self.snapshot_begin(tables),
            Event::Chunk(keys) => self.chunk(usize::from(*keys)),
            Event::SnapshotEnd { abandon } => self.snapshot_end(*abandon),
            Event::Alter { table: at, forgets } => {
                let table = &mut self.tables[*at];
                let row_type = table.other.unwrap_or_else(|| {
                    self.next.1 += 1;
                    self.next.1
                });
                table.other = Some(std::mem::replace(&mut table.row_type, row_type));
                table.columns = if table.columns == 3 { 4 } else { 3 };
                let forgotten = table.source.values_mut().filter(|_| *forgets);
                forgotten.for_each(|values| values.2 = None);
                self.describe(*at);
            }
            Event::Recreate(at) => {
                self.next.1 += 1;
                let old = &self.tables[*at];
                let told = old.told || (old.known && old.complete);
                let replaced = if old.known { (old.oid, old.passes.clone()) } else { old.replaced.clone() };
                let (oid, row_type, columns, full) = (1000 + self.next.1, self.next.1, old.columns, old.full);
                self.tables[*at] =
                    Table { oid, row_type, columns, full, generation: 1, told, replaced, ..Table::default() };
                self.describe(*at);
            }
            Event::Lose(at, key) => {
                self.tables[*at].source.remove(&id(*key));
            }
            Event::Gain(at, key) => {
                let values = (Some("gained".to_owned()), big(9), None);
                self.tables[*at].source.entry(id(*key)).or_insert(values);
            }
        }
    }

    fn describe(&mut self, at: usize) {
        let table = &self.tables[at];
        let proto = spec(table.row_type, at, table.oid, table.columns).to_proto();
        self.row_types.insert(table.row_type, proto);
    }

    fn position(&mut self, ordinal: u32) -> Position {
        self.next.0 += 16;
        Position::new(Lsn(self.next.0), ordinal)
    }

    fn mark(&mut self, at: Position, kind: Kind, row_type: u32, bytes: Vec<u8>) {
        let entry = entry(at, kind, Op::None, row_type);
        self.raw.push((entry, bytes.clone()));
        self.filled.push((entry, bytes));
        if entry.completes() {
            let mut tables = self.tables.clone();
            for (at, table) in tables.iter_mut().enumerate() {
                table.is_being_read = self.passes.iter().any(|pass| pass.tables.iter().any(|(read, ..)| *read == at));
            }
            self.states.insert(at, tables);
        }
    }

    fn announce(&mut self, at: usize, position: Position) {
        let table = &mut self.tables[at];
        let before = std::mem::replace(&mut table.announced, (table.row_type, table.columns));
        if before == table.announced {
            return;
        }
        if before.1 > table.columns {
            table.dropped = Some(table.generation);
        }
        let row_type = table.row_type;
        let bytes = self.row_types[&row_type].encode_to_vec();
        self.know(at);
        self.mark(position, Kind::RowType, row_type, bytes);
    }

    /// The mirror comes across the table.
    fn know(&mut self, at: usize) {
        let table = &mut self.tables[at];
        if !table.known {
            table.known = true;
            let names = |pass: &&Pass| pass.tables.iter().any(|(table, ..)| *table == at);
            table.passes = self.passes.iter().filter(names).map(|pass| (pass.number, 1)).collect();
        }
    }

    fn transaction(&mut self, steps: &[(usize, Step)]) {
        let begin = self.position(0);
        self.mark(begin, Kind::Begin, 0, Vec::new());
        let (mut ordinal, mut last) = (0, 0);
        for (at, step) in steps {
            last = ordinal + 1;
            self.announce(*at, Position::new(begin.lsn, last));
            if self.step(*at, step, Position::new(begin.lsn, ordinal + 1)) {
                ordinal += 1;
            }
        }
        self.mark(Position::new(begin.lsn, last), Kind::Commit, 0, Vec::new());
    }

    fn step(&mut self, at: usize, step: &Step, position: Position) -> bool {
        let table = &mut self.tables[at];
        let (columns, row_type, generation) = (table.columns, table.row_type, table.generation);
        let with_c = |values: (Option<String>, Option<String>)| {
            let c = (columns > 3).then(|| "c".to_owned());
            (values.0, values.1, c)
        };
        let held = |values: &Values| Held { values: values.clone(), columns, big_missing: false, generation };
        let (raw, filled) = match step {
            Step::Insert { id: key, value, big: large } => {
                let (key, values) = (id(*key), with_c((Some(format!("a {value}")), big(*large))));
                if table.source.contains_key(&key) {
                    return false;
                }
                table.held.insert(key.clone(), held(&values));
                let row = encode(columns, &key, Some(&values), false);
                table.source.insert(key, values);
                let parts = Parts { row, ..Parts::of(Op::Insert, row_type) };
                (parts.clone(), parts)
            }
            Step::Update { id: key, value, big: large, new_id } => {
                let (key, a) = (id(*key), Some(format!("a {value}")));
                let new_key = new_id.map_or_else(|| key.clone(), id);
                let taken = new_key != key && table.source.contains_key(&new_key);
                let Some(old) = table.source.get(&key).cloned().filter(|_| !taken) else { return false };
                // What is null is never left out as unchanged.
                let keeps = large.is_none() && old.1.is_some();
                let values = with_c((a, large.map_or(old.1.clone(), big)));
                table.source.remove(&key);
                table.source.insert(new_key.clone(), values.clone());
                table.update((&key, &old), (&new_key, &values), keeps)
            }
            Step::Delete { id: key } => {
                let key = id(*key);
                let Some(old) = table.source.remove(&key) else { return false };
                let (raw_old, old_kind) = table.old(&key, &old, true);
                let raw = Parts { old: raw_old, old_kind, ..Parts::of(Op::Delete, row_type) };
                let mut filled = raw.clone();
                table.fill_old(&key, &mut filled);
                table.held.remove(&key);
                (raw, filled)
            }
            Step::Truncate => {
                table.source.clear();
                table.held.clear();
                let parts = Parts::of(Op::Truncate, row_type);
                (parts.clone(), parts)
            }
        };
        self.raw.extend(raw.records(position));
        self.filled.extend(filled.records(position));
        true
    }

    fn snapshot_begin(&mut self, tables: &[usize]) {
        let number = self.next.2;
        self.next.2 += 1;
        let at = self.position(SNAPSHOT_ORDINAL);
        let names = tables.iter().map(|at| table_name(*at).to_string()).collect();
        let begin =
            v1::SnapshotBegin { snapshot: number, position: at.to_string(), tables: names, ..Default::default() };
        for at in tables {
            let table = &mut self.tables[*at];
            if table.known {
                table.generation += 1;
                table.passes.insert(number, table.generation);
            }
        }
        let tables = tables.iter().map(|at| (*at, 0, Some(String::new()))).collect();
        self.passes.push(Pass { number, tables });
        self.mark(at, Kind::SnapshotBegin, number, begin.encode_to_vec());
    }

    fn chunk(&mut self, keys: usize) {
        let Some(pass) = self.passes.first_mut() else { return };
        let number = pass.number;
        let unread = pass.tables.iter_mut().find(|(_, _, cursor)| cursor.is_some());
        let Some((at, oid, cursor)) = unread else { return };
        let (at, table) = (*at, &self.tables[*at]);
        if *oid == 0 {
            *oid = table.oid;
        }
        // A table that was created anew is read on as another.
        let same = *oid == table.oid;
        let from = cursor.take().unwrap_or_default();
        let rows: Vec<(String, Values)> =
            table.source.range(from..).take(keys + 1).map(|(key, values)| (key.clone(), table.sent(values))).collect();
        *cursor = rows.get(keys).map(|(key, _)| key.clone());
        let done = cursor.is_none();
        if !same {
            *oid = u32::MAX;
        }
        let position = self.position(SNAPSHOT_ORDINAL);
        self.mark(position, Kind::Begin, number, Vec::new());
        for (key, values) in rows.iter().take(keys) {
            self.announce(at, position);
            let table = &mut self.tables[at];
            let (row_type, columns, generation) = (table.row_type, table.columns, table.generation);
            let held = Held { values: values.clone(), columns, big_missing: false, generation };
            let correction = table.correction(key, values);
            table.held.insert(key.clone(), held);
            let row = encode(table.columns, key, Some(values), false);
            let records = Parts { row, ..Parts::of(Op::Read, row_type) }.records(position);
            self.raw.extend(records.clone());
            self.filled.extend(records);
            self.filled.extend(correction.map(|parts| parts.records(position)).unwrap_or_default());
        }
        self.know(at);
        let name = table_name(at);
        let (schema, table, table_oid) = (name.schema, name.table, self.tables[at].oid);
        let cursor = ChunkTable { snapshot: number, table_oid, schema, table, ..ChunkTable::default() };
        self.mark(position, Kind::SnapshotCursor, number, cursor.encode_to_vec());
        self.mark(position, Kind::Commit, number, Vec::new());
        assert!(done || keys > 0);
    }

    fn snapshot_end(&mut self, abandon: bool) {
        let Some(pass) = self.passes.first().cloned() else { return };
        let read = pass.tables.iter().all(|(_, _, cursor)| cursor.is_none());
        if !read && !abandon {
            return;
        }
        for (table, oid, _) in &pass.tables {
            if !abandon && *oid == self.tables[*table].oid {
                self.close(pass.number, *table);
            }
        }
        self.passes.remove(0);
        let at = self.position(SNAPSHOT_ORDINAL);
        let abandoned = if abandon { "cancelled".to_owned() } else { String::new() };
        let end = v1::SnapshotEnd { snapshot: pass.number, position: at.to_string(), abandoned, ..Default::default() };
        for (table, oid, _) in &pass.tables {
            let table = &mut self.tables[*table];
            let completes_replaced = *oid == table.replaced.0 && table.replaced.1.contains_key(&pass.number);
            table.told |= !abandon && !table.known && completes_replaced;
            let Some(generation) = table.passes.remove(&pass.number) else { continue };
            if !abandon && *oid == table.oid {
                (table.complete, table.told) = (true, false);
                table.held.retain(|_, held| held.generation >= generation);
            }
        }
        self.mark(at, Kind::SnapshotEnd, pass.number, end.encode_to_vec());
    }
}

impl Model {
    /// A chunk says that a table is out: what it has not confirmed is deleted.
    fn close(&mut self, number: u32, at: usize) {
        let position = self.position(SNAPSHOT_ORDINAL);
        self.mark(position, Kind::Begin, number, Vec::new());
        let table = &mut self.tables[at];
        let pass = table.passes.get(&number).copied();
        if let Some(generation) = pass.filter(|_| table.is_corrected()) {
            let (row_type, columns) = table.announced;
            let mut gone: Vec<_> = table.held.extract_if(.., |_, held| held.generation < generation).collect();
            gone.sort_by_key(|(key, _)| encode(1, key, None, false));
            for (key, held) in gone {
                let (values, old_kind) = match held.big_missing {
                    true => (None, OldKind::Key),
                    false => (Some(&held.values), OldKind::Full),
                };
                let old = encode(columns, &key, values, false);
                self.filled.extend(Parts { old, old_kind, ..Parts::of(Op::Delete, row_type) }.records(position));
            }
        }
        if let Some(generation) = pass {
            let table = &mut self.tables[at];
            table.dropped = table.dropped.filter(|dropped| *dropped >= generation);
        }
        let (name, table_oid) = (table_name(at), self.tables[at].oid);
        let (schema, table) = (name.schema, name.table);
        let cursor = ChunkTable { snapshot: number, table_oid, schema, table, closes: true, ..ChunkTable::default() };
        self.mark(position, Kind::SnapshotCursor, number, cursor.encode_to_vec());
        self.mark(position, Kind::Commit, number, Vec::new());
    }
}

impl Table {
    fn is_corrected(&self) -> bool {
        self.complete || self.told || self.generation > 2
    }

    /// What is sent of a row.
    fn sent(&self, (a, big, c): &Values) -> Values {
        (a.clone(), big.clone(), c.clone().filter(|_| self.columns > 3))
    }

    /// What those are told who have what the mirror has.
    fn correction(&self, key: &str, values: &Values) -> Option<Parts> {
        let row = encode(self.columns, key, Some(values), false);
        let held = match self.held.get(key) {
            _ if !self.is_corrected() => return None,
            None if !self.complete && !self.told => return None,
            None => return Some(Parts { row, ..Parts::of(Op::Insert, self.row_type) }),
            Some(held) => held,
        };
        let update = Parts { row, ..Parts::of(Op::Update, self.row_type) };
        if held.big_missing {
            return Some(update);
        }
        let old = encode(self.columns, key, Some(&held.values), false);
        let is_back = self.dropped.is_some() && self.columns > 3;
        (old != update.row || is_back).then_some(Parts { old, old_kind: OldKind::Full, ..update })
    }

    fn update(&mut self, old: (&str, &Values), new: (&str, &Values), keeps: bool) -> (Parts, Parts) {
        let (row_type, generation) = (self.row_type, self.generation);
        let (raw_old, old_kind) = self.old(old.0, old.1, old.0 != new.0);
        let unchanged = if keeps { vec![FIELDS[2]] } else { Vec::new() };
        let row = encode(self.columns, new.0, Some(new.1), keeps);
        let raw = Parts { row, old: raw_old, old_kind, unchanged, ..Parts::of(Op::Update, row_type) };
        let mut filled = raw.clone();
        let held = self.held.get(old.0).cloned();
        let knows_big = self.full || held.as_ref().is_some_and(|held| !held.big_missing && held.values.1.is_some());
        // What the mirror has may differ from the source, where the source has changed without a record.
        let big = match &held {
            Some(held) if !self.full => held.values.1.clone(),
            Some(_) | None => old.1.1.clone(),
        };
        let missing = keeps && !knows_big;
        let mut values = new.1.clone();
        if keeps {
            values.1 = if missing { None } else { big };
        }
        if self.complete {
            self.fill_old(old.0, &mut filled);
            if keeps && !missing {
                filled.unchanged.clear();
                filled.row = encode(self.columns, new.0, Some(&values), false);
            }
        }
        self.held.remove(old.0);
        let columns = self.columns;
        self.held.insert(new.0.to_owned(), Held { values, columns, big_missing: missing, generation });
        (raw, filled)
    }

    fn old(&self, key: &str, values: &Values, moved: bool) -> (Vec<u8>, OldKind) {
        match (self.full, moved) {
            (true, _) => (encode(self.columns, key, Some(values), false), OldKind::Full),
            (false, true) => (encode(self.columns, key, None, false), OldKind::Key),
            (false, false) => (Vec::new(), OldKind::None),
        }
    }

    fn fill_old(&self, key: &str, filled: &mut Parts) {
        let Some(held) = self.held.get(key) else { return };
        let knows_c = self.columns <= held.columns;
        if self.complete && !held.big_missing && knows_c && !self.full {
            filled.old = encode(self.columns, key, Some(&held.values), false);
            filled.old_kind = OldKind::Full;
        }
    }
}
