//! What is delivered of a change, for every combination of what is known of the row before it and after it.

use bytes::{Bytes, BytesMut};
use prost::Message as _;
use tidegate_model::{BlockBuilder, Lsn, Op, Position};
use tidegate_proto::v1::change::Move;
use tidegate_schema::{
    ChangeParts, ColumnSpec, Extra, OldKind, RowTypeSpec, ScalarKind, ValueKind, event_body, push_change, wire,
};
use tidegate_views::{CollationFacts, ColumnFacts};

use super::{
    change::WholeChange,
    route::{NoMembers, Verdict},
    *,
};
use crate::{
    selection::{Deliver, Filter, Plan, PlanKey, Routing},
    snapshots::Described,
};

pub(crate) struct RowTypes(pub(crate) Vec<Arc<RowType>>);

impl RowTypeLookup for RowTypes {
    fn row_type(&self, row_type: u32) -> Option<Arc<RowType>> {
        self.0.iter().find(|known| known.proto().row_type == row_type).cloned()
    }

    fn of_table(&self, _: &TableName) -> Vec<Arc<RowType>> {
        self.0.clone()
    }

    fn newest(&self, _: &TableName) -> Option<Arc<RowType>> {
        self.0.last().cloned()
    }

    fn version(&self) -> u64 {
        self.0.len() as u64
    }
}

/// Name, type, field.
pub(crate) type Columns = [(&'static str, u32, u32)];

pub(crate) const COLUMNS: &Columns = &[("id", 20, 1), ("v", 20, 2), ("note", 25, 3)];

pub(crate) fn row_type(number: u32, columns: &Columns) -> Arc<RowType> {
    let column = |&(name, type_oid, field): &(&str, u32, u32)| ColumnSpec {
        name: name.into(),
        attnum: 1,
        type_oid,
        type_name: "a type".into(),
        codec: ValueKind::Scalar(if type_oid == 20 { ScalarKind::Int64 } else { ScalarKind::Text }),
        key: name == "id",
        field,
    };
    let spec = RowTypeSpec {
        row_type: number,
        source: "shop".parse().expect("a name"),
        name: TableName::new("public", "t"),
        table_oid: 1,
        identity: v1::ReplicaIdentity::Key,
        columns: columns.iter().map(column).collect(),
    };
    Arc::new(RowType::new(spec.to_proto()).expect("a row type"))
}

pub(crate) fn filter(condition: &str, columns: &[&str], updates: Updates) -> ShapeFilter {
    let collation = CollationFacts { name: "C".to_owned(), is_default: true, deterministic: true, is_c: true };
    let column = |&(name, type_oid, _): &(&str, u32, u32)| ColumnFacts {
        name: name.to_owned(),
        field: 0,
        type_oid,
        collation: (type_oid == 25).then(|| collation.clone()),
        enum_type: None,
    };
    let facts = TableFacts {
        schema: "public".to_owned(),
        name: "t".to_owned(),
        columns: COLUMNS.iter().map(column).collect(),
        default_collation: collation.clone(),
    };
    let type_oids = COLUMNS.iter().map(|&(_, type_oid, _)| type_oid).collect();
    let described =
        Described { facts, key: vec!["id".to_owned()], type_oids, type_names: vec![], whole_old_rows: false };
    let definition = ShapeDefinition {
        table: Arc::new(TableName::new("public", "t")),
        condition: condition.into(),
        parameters: Box::default(),
        columns: columns.iter().map(|&column| column.to_owned()).collect(),
        updates,
    };
    let known = Known::of(described);
    let inner = [(TableName::new("public", "t"), Arc::clone(&known))].into();
    ShapeFilter::with_shape(Arc::new(definition), known, inner).expect("a shape").0
}

fn route_of(filter: &ShapeFilter) -> ShapeRoute {
    let only = row_type(1, COLUMNS);
    filter.route(&only, &RowTypes(vec![only.clone()])).expect("a route")
}

pub(crate) fn row(id: u64, v: Option<u64>, note: Option<&str>) -> Vec<u8> {
    let mut out = BytesMut::new();
    wire::put_varint_field(&mut out, 1, id);
    v.into_iter().for_each(|v| wire::put_varint_field(&mut out, 2, v));
    note.into_iter().for_each(|note| wire::put_len_field(&mut out, 3, note.as_bytes()));
    out.to_vec()
}

/// The pieces of a change, as capture writes it.
fn pieces(op: Op, (row, unchanged): (&[u8], &[u32]), (old, old_kind): (&[u8], OldKind)) -> Vec<Bytes> {
    let parts = ChangeParts { op, row_type: 1, row, old, old_kind, unchanged, extra: Extra::None };
    let mut builder = BlockBuilder::default();
    push_change(&parts, Lsn(7), &mut builder);
    let block = builder.finish();
    block.entries().iter().map(|entry| block.slice(entry)).collect()
}

/// What is delivered, decoded; None for nothing.
fn delivered(route: &ShapeRoute, op: Op, pieces: &[Bytes]) -> Result<Option<v1::Change>, String> {
    let change = WholeChange::read(op, 1, pieces).expect("a change");
    let judged = route.judge(&change, &NoMembers, Position::new(Lsn(7), 1));
    let rewritten = match judged.map_err(|failure| failure.to_string())? {
        Verdict::Nothing => return Ok(None),
        Verdict::AsItCame => change.clone(),
        Verdict::Rewritten(change) => change,
    };
    let mut out = BytesMut::new();
    let written = rewritten.write(route.fields(), &mut out).expect("rows");
    let mut whole: Option<v1::Change> = None;
    for (range, continues) in written {
        let piece = v1::Change::decode(event_body(&out[range]).expect("an event")).expect("a change");
        assert_eq!(piece.continues, continues);
        match &mut whole {
            None => whole = Some(piece),
            Some(whole) => {
                whole.row = [&whole.row[..], &piece.row].concat().into();
                whole.old = [&whole.old[..], &piece.old].concat().into();
            }
        }
    }
    Ok(whole)
}

#[test]
fn an_update_is_told_by_what_the_row_was_and_is() {
    let route = route_of(&filter("v > 10", &[], Updates::FullRow));
    let (inside, outside) = (row(1, Some(20), Some("a")), row(1, Some(5), Some("a")));
    let update =
        |row: &[u8], old: (&[u8], OldKind)| delivered(&route, Op::Update, &pieces(Op::Update, (row, &[]), old));
    let told = |change: Result<Option<v1::Change>, String>| {
        change.expect("judged").map(|change| (change.op(), change.r#move(), change.row.to_vec(), change.old.to_vec()))
    };
    use v1::change::Op::{Delete, Insert, Update};
    let full = |row: &[u8]| (row.to_vec(), OldKind::Full);
    for (new, (old, old_kind), expected) in [
        (&inside, full(&outside), Some((Insert, Move::MovedIn, inside.clone(), vec![]))),
        (&outside, full(&inside), Some((Delete, Move::MovedOut, vec![], inside.clone()))),
        (&outside, full(&row(1, None, None)), None),
        (&inside, full(&inside), None),
        (&inside, full(&row(1, Some(11), None)), Some((Update, Move::Stayed, inside.clone(), row(1, Some(11), None)))),
        // What the row was is not known: it may have been in the shape.
        (&inside, (vec![], OldKind::None), Some((Update, Move::Stayed, inside.clone(), vec![]))),
        (&outside, (vec![], OldKind::None), Some((Delete, Move::MovedOut, vec![], row(1, None, None)))),
        (&outside, (row(9, None, None), OldKind::Key), Some((Delete, Move::MovedOut, vec![], row(9, None, None)))),
    ] {
        assert_eq!(told(update(new, (&old, old_kind))), expected, "{new:?} {old:?} {old_kind:?}");
    }
}

#[test]
fn a_row_that_moves_in_is_whole() {
    let route = route_of(&filter("v > 10 AND note = 'long'", &[], Updates::FullRow));
    let old = row(1, Some(5), Some("long"));
    let sent = pieces(Op::Update, (&row(1, Some(20), None), &[3]), (&old, OldKind::Full));
    let change = delivered(&route, Op::Update, &sent).expect("judged").expect("it moves in");
    assert_eq!((change.row.to_vec(), change.unchanged), (row(1, Some(20), Some("long")), vec![]));
    let unknown = pieces(Op::Update, (&row(1, Some(20), None), &[3]), (&[], OldKind::None));
    let failed = delivered(&route, Op::Update, &unknown).expect_err("the note is not known");
    assert!(
        failed.starts_with("table public.t, at 0/7:1, row (id = 1): the value of column \"note\" has never come"),
        "{failed}"
    );
}

#[test]
fn changed_columns_come_with_the_key() {
    let route = route_of(&filter("v > 10", &[], Updates::ChangedColumns));
    let old = row(1, Some(20), Some("a"));
    let update = |new: &[u8]| {
        let sent = pieces(Op::Update, (new, &[]), (&old, OldKind::Full));
        let change = delivered(&route, Op::Update, &sent).expect("judged").expect("an update");
        (change.row.to_vec(), change.old.to_vec(), change.old_kind(), change.unchanged)
    };
    use v1::change::OldKind::{Key, None as Nothing};
    assert_eq!(update(&row(1, Some(20), None)), (row(1, None, None), vec![], Nothing, vec![2]));
    assert_eq!(update(&row(1, Some(21), Some("a"))), (row(1, Some(21), None), vec![], Nothing, vec![3]));
    assert_eq!(update(&row(2, Some(20), Some("a"))), (row(2, Some(20), Some("a")), row(1, None, None), Key, vec![]));
}

#[test]
fn a_large_row_moves_in_pieces_that_join_up() {
    let route = route_of(&filter("v > 10", &["note"], Updates::FullRow));
    let note = "n".repeat(1_500_000);
    let (old, new) = (row(1, Some(5), Some(&note)), row(1, Some(20), Some(&note)));
    let sent = pieces(Op::Update, (&new, &[]), (&old, OldKind::Full));
    assert!(sent.len() > 3);
    let change = delivered(&route, Op::Update, &sent).expect("judged").expect("it moves in");
    assert_eq!((change.op(), change.row.to_vec()), (v1::change::Op::Insert, row(1, None, Some(&note))));
}

#[test]
fn a_column_that_a_row_type_lacks_is_null_until_it_was_there() {
    let before = row_type(1, &COLUMNS[..1]);
    let (with, without) = (row_type(2, COLUMNS), row_type(3, &[COLUMNS[0], COLUMNS[2]]));
    let retyped = row_type(4, &[COLUMNS[0], ("v", 25, 9), COLUMNS[2]]);
    let row_types = RowTypes(vec![before.clone(), with, without.clone(), retyped.clone()]);
    let filter = filter("v IS NULL", &[], Updates::FullRow);
    let insert = |row_type: &Arc<RowType>, op| {
        let route = filter.route(row_type, &row_types).expect("a route");
        delivered(&route, op, &pieces(op, (&row(1, None, None), &[]), (&[], OldKind::None)))
    };
    assert!(insert(&before, Op::Insert).expect("judged").is_some());
    let lost = insert(&without, Op::Insert).expect_err("it was there");
    assert!(lost.contains("column \"v\", which the condition reads, is gone"), "{lost}");
    let lost = insert(&retyped, Op::Insert).expect_err("it was another");
    assert!(lost.contains("has another type now"), "{lost}");
}

#[test]
fn a_table_that_comes_back_to_an_earlier_row_type_has_lost_what_that_lacks() {
    let (retyped, without) = (row_type(1, &[COLUMNS[0], ("v", 25, 9), COLUMNS[2]]), row_type(2, &[COLUMNS[0]]));
    let with = row_type(3, COLUMNS);
    let filter = filter("v > 10", &[], Updates::FullRow);
    let judged = |row_type: &Arc<RowType>, newest: &Arc<RowType>| {
        let row_types = RowTypes(vec![retyped.clone(), without.clone(), with.clone(), newest.clone()]);
        let route = filter.route(row_type, &row_types).expect("a route");
        let insert = pieces(Op::Insert, (&row(1, None, None), &[]), (&[], OldKind::None));
        (route.is_provisional(), delivered(&route, Op::Insert, &insert))
    };
    for earlier in [&retyped, &without] {
        assert!(matches!(judged(earlier, &with), (true, Ok(None))), "it is of before");
        let (is_provisional, judged) = judged(earlier, earlier);
        assert!(!is_provisional && judged.is_err_and(|lost| lost.contains("column \"v\"")), "it has come back");
    }
}

/// Numbers 1 and 2: without the column that is read, which no row type had yet, and with it.
pub(crate) fn without_and_with() -> [Arc<RowType>; 2] {
    [row_type(1, &[COLUMNS[0], COLUMNS[2]]), row_type(2, COLUMNS)]
}

#[test]
fn a_plan_makes_what_is_provisional_once_and_again_when_the_table_has_come_back() {
    let [without, with] = without_and_with();
    let filter = Filter::Shape(filter("v IS NULL", &[], Updates::FullRow));
    let plan = Plan::new(PlanKey::new(vec![filter], 0, tidegate_model::AdHoc::default()));
    let route = |routing: &Routing| match &routing.deliver[0] {
        Deliver::Shape(route) => (route.is_provisional(), route.is_lost()),
        Deliver::Skip | Deliver::Whole | Deliver::Columns(_) => panic!("it is of a shape"),
    };
    let mut row_types = RowTypes(vec![without.clone(), with]);
    let first = plan.routing(1, &row_types).expect("a routing");
    let second = plan.routing(1, &row_types).expect("a routing");
    assert!(Arc::ptr_eq(&first, &second), "it is made once");
    assert_eq!(route(&first), (true, false));
    row_types.0.push(without);
    assert_eq!(route(&plan.routing(1, &row_types).expect("a routing")), (false, true));
}

#[test]
fn definitions_are_told_apart_and_zero_means_tables() {
    let one = filter("v > 10", &[], Updates::FullRow);
    let other = filter("v > 11", &[], Updates::FullRow);
    let number = |shapes: &[&ShapeFilter]| definitions(shapes.iter().copied());
    assert_eq!(number(&[]), 0);
    assert_eq!(number(&[&one]), number(&[&filter("10 < v", &[], Updates::FullRow)]));
    assert_ne!(number(&[&one]), number(&[&other]));
    assert_ne!(number(&[&one, &other]), number(&[&other, &one]));
}
