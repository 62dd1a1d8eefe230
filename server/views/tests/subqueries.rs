//! Subqueries of conditions: what they are told by, how they are numbered, which members rows bring, and which rows those concern.

use std::{collections::HashSet, sync::Arc};

use bytes::BytesMut;
use tidegate_model::TableName;
use tidegate_schema::{ColumnSpec, RowEncoder, TypeShape, Value, ValueKind};
use tidegate_views::{
    CollationFacts, ColumnFacts, Effect, EnumFacts, Failure, Members, Membership, Parameter, Pinned, Predicate, Shape,
    ShapeDefinition, Subquery, TableFacts, Updates, subquery_tables,
};

const ORDERS: &[(&str, u32)] =
    &[("id", 20), ("customer", 23), ("amount", 1700), ("region", 25), ("code", 1042), ("mood", 0), ("rate", 701)];
const CUSTOMERS: &[(&str, u32)] = &[
    ("kind", 0),
    ("id", 20),
    ("region", 25),
    ("credit", 1700),
    ("code", 1042),
    ("rate", 701),
    ("wait", 1186),
    ("since", 1184),
    ("small", 21),
    ("active", 16),
];

fn facts(name: &str, columns: &[(&str, u32)], first_field: u32) -> TableFacts {
    let collation = CollationFacts { name: "default".to_owned(), is_default: true, deterministic: true, is_c: true };
    // Labels that came between two readings of the catalog move the others.
    let labels: &[&str] = if name == "orders" { &["sad", "ok"] } else { &["new", "sad", "ok"] };
    let column = |(field, (name, type_oid)): (u32, &(&str, u32))| ColumnFacts {
        name: (*name).to_owned(),
        field,
        type_oid: *type_oid,
        collation: matches!(type_oid, 25 | 1042).then(|| collation.clone()),
        enum_type: (*type_oid == 0).then(|| EnumFacts {
            schema: "public".to_owned(),
            name: "mood".to_owned(),
            labels: labels.iter().map(|label| (*label).to_owned()).collect(),
        }),
    };
    TableFacts {
        schema: "public".to_owned(),
        name: name.to_owned(),
        columns: (first_field..).zip(columns).map(column).collect(),
        default_collation: collation.clone(),
    }
}

fn orders() -> TableFacts {
    facts("orders", ORDERS, 1)
}

fn tables() -> Vec<TableFacts> {
    vec![facts("customers", CUSTOMERS, 1), orders()]
}

fn predicate(condition: &str) -> Predicate {
    Predicate::with_tables(condition, &[], &orders(), &tables()).expect(condition)
}

fn only(condition: &str) -> Subquery {
    let predicate = predicate(condition);
    assert_eq!(predicate.subqueries().len(), 1, "{condition}");
    predicate.subqueries()[0].as_ref().clone()
}

/// A row with these values of its columns, the others NULL.
fn row(columns: &[(&str, u32)], first_field: u32, values: &[(&str, &str)]) -> BytesMut {
    let column = |(field, (name, oid)): (u32, &(&str, u32))| ColumnSpec {
        name: (*name).to_owned(),
        attnum: 0,
        type_oid: *oid,
        type_name: String::new(),
        codec: ValueKind::of(*oid, if *oid == 0 { TypeShape::Enum } else { TypeShape::Base }),
        key: false,
        field,
    };
    let encoder = RowEncoder::new(&(first_field..).zip(columns).map(column).collect::<Vec<_>>());
    let value = |(column, _): &(&str, u32)| {
        let given = values.iter().find(|(name, _)| name == column);
        given.map_or(Value::Null, |(_, text)| Value::Text(text.as_bytes()))
    };
    let mut row = BytesMut::new();
    encoder.encode(columns.iter().map(value), &mut row).expect("values of the types");
    row
}

fn order(values: &[(&str, &str)]) -> BytesMut {
    row(ORDERS, 1, values)
}

fn member(subquery: &Subquery, values: &[(&str, &str)]) -> Option<Vec<u8>> {
    let mut room = vec![7];
    subquery.member(&row(CUSTOMERS, 1, values), &mut room).expect("a member").map(<[u8]>::to_vec)
}

/// Sets by the numbers of subqueries.
#[derive(Default)]
struct Sets(Vec<HashSet<Option<Vec<u8>>>>);

impl Members for Sets {
    fn membership(&self, subquery: usize, member: Option<&[u8]>) -> Option<bool> {
        let set = &self.0[subquery];
        let contains = member.is_some_and(|member| set.contains(&Some(member.to_vec())));
        Membership { contains, has_null: set.contains(&None), is_empty: set.is_empty() }.of(member)
    }
}

/// The verdict for an order where customers with these values are in the set of the only subquery.
fn verdict(condition: &str, order_values: &[(&str, &str)], customers: &[&[(&str, &str)]]) -> Option<bool> {
    let (predicate, subquery) = (predicate(condition), only(condition));
    let sets = Sets(vec![customers.iter().map(|values| member(&subquery, values)).collect()]);
    predicate.evaluate_given(&order(order_values), &sets).expect("a row").verdict.expect("no error")
}

#[test]
fn tables_are_named_without_their_facts() {
    let tables = |text: &str| subquery_tables(text).map(|tables| tables.iter().map(TableName::to_string).collect());
    let nested =
        "a in (select b from Customers where c in (select d from s.\"T t\" x where e in (select f from customers)))";
    assert_eq!(tables(nested), Ok(vec!["public.customers".to_owned(), "s.\"T t\"".to_owned()]));
    assert_eq!(tables("a = any (select b from c) or a <> all (select b from c)"), Ok(vec!["public.c".to_owned()]));
    assert_eq!(tables(" "), Ok(Vec::new()));
    assert_eq!(tables("a = 1"), Ok(Vec::new()));
    assert!(subquery_tables("a in (select").is_err());
    assert!(subquery_tables(&" ".repeat(70_000)).is_err());
}

#[test]
fn in_is_true_false_or_null_as_in_postgresql() {
    let condition = "customer in (select id from customers)";
    let (one, two, null): (&[_], &[_], &[(&str, &str)]) = (&[("id", "1")], &[("id", "2")], &[]);
    let customer = |id| [("customer", id)];
    assert_eq!(verdict(condition, &customer("1"), &[one, null]), Some(true));
    assert_eq!(verdict(condition, &customer("3"), &[one, two]), Some(false));
    assert_eq!(verdict(condition, &customer("3"), &[one, null]), None);
    assert_eq!(verdict(condition, &[], &[one]), None);
    assert_eq!(verdict(condition, &[], &[]), Some(false));
    assert_eq!(verdict("customer not in (select id from customers)", &[], &[]), Some(true));
    assert_eq!(verdict("customer <> all (select id from customers)", &customer("3"), &[null]), None);
    // What fails is compared with nothing where the set is empty.
    assert_eq!(verdict("1 / customer in (select id from customers)", &customer("0"), &[]), Some(false));
}

#[test]
fn members_are_equal_where_postgresql_s_values_are() {
    let is_in = |condition: &str, order_values: &[(&str, &str)], customer: &[(&str, &str)]| {
        verdict(condition, order_values, &[customer])
    };
    for (column, ours, inner, theirs) in [
        ("customer", "5", "id", "5"),
        ("customer", "5", "small", "5"),
        ("id", "5", "small", "5"),
        ("customer", "5", "credit", "5.00"),
        ("amount", "5.0", "id", "5"),
        ("amount", "0.10", "credit", "0.1"),
        ("amount", "NaN", "credit", "NaN"),
        ("rate", "-0", "rate", "0"),
        ("rate", "NaN", "rate", "NaN"),
        ("rate", "5", "id", "5"),
        ("code", "a    ", "code", "a  "),
        ("region", "a", "code", "a  "),
        ("code", "a   ", "region", "a"),
        ("mood", "ok", "kind", "ok"),
    ] {
        let condition = format!("{column} in (select {inner} from customers)");
        assert_eq!(is_in(&condition, &[(column, ours)], &[(inner, theirs)]), Some(true), "{condition} {ours}");
    }
    assert_eq!(is_in("region in (select region from customers)", &[("region", "a ")], &[("region", "a")]), Some(false));
    assert_eq!(is_in("mood in (select kind from customers)", &[("mood", "ok")], &[("kind", "sad")]), Some(false));
    let interval = "interval '1 mon' in (select wait from customers)";
    assert_eq!(is_in(interval, &[], &[("wait", "30 days")]), Some(true));
    let moment = "timestamptz '2024-02-29 12:00:00+00' in (select since from customers)";
    assert_eq!(is_in(moment, &[], &[("since", "2024-02-29 12:00:00+00")]), Some(true));
}

#[test]
fn a_label_that_is_newer_than_the_facts_is_a_member() {
    let subquery = only("mood in (select kind from customers)");
    assert_eq!(member(&subquery, &[("kind", "newer")]), Some(b"newer".to_vec()));
}

#[test]
fn equal_subqueries_are_one_and_have_one_hash_wherever_they_stand() {
    let written = "customer in (select id from customers where active and credit > 1) \
                   or id not in (select c.id from public.customers as c where c.credit > 1.0 and c.active = true)";
    let subquery = only(written);
    let elsewhere = only("region = 'a' and not (id = any (select id from customers where 1 < credit and active))");
    assert_eq!(subquery.hash(), elsewhere.hash());
    assert_eq!((subquery.table(), subquery.column()), (&TableName::new("public", "customers"), "id"));
    assert_eq!(subquery.condition().columns().len(), 2);
    for other in [
        "customer in (select id from customers where active)",
        "customer in (select small from customers where active and credit > 1)",
        "amount in (select id from customers where active and credit > 1)",
        "customer in (select id from orders where amount > 1)",
    ] {
        assert_ne!(subquery.hash(), only(other).hash(), "{other}");
    }
}

#[test]
fn conditions_that_are_equal_number_their_subqueries_alike() {
    let (one, other) =
        ("customer in (select id from customers)", "region in (select region from customers where active)");
    let hashes = |condition: &str| -> Vec<[u8; 32]> {
        predicate(condition).subqueries().iter().map(|subquery| subquery.hash()).collect()
    };
    assert_eq!(hashes(&format!("{one} and {other}")), hashes(&format!("{other} and {one}")));
    assert_eq!(hashes(&format!("{one} and {other}")).len(), 2);
    let without = predicate(&format!("{one} or true"));
    assert_eq!((without.subqueries().len(), without.written_subqueries().len()), (0, 1));
    assert_eq!(without.selects(&order(&[])), Ok(true));
}

#[test]
fn nested_subqueries_are_those_of_the_subquery() {
    let inner = "select customer from orders where amount > 10";
    let subquery = only(&format!("customer in (select id from customers where id in ({inner}))"));
    assert_eq!(subquery.condition().subqueries()[0].hash(), only(&format!("id in ({inner})")).hash());
    let customer = row(CUSTOMERS, 1, &[("id", "3")]);
    let member = Some(3_i64.cast_unsigned() ^ 1 << 63).map(|key| key.to_be_bytes().to_vec());
    let sets = Sets(vec![HashSet::from([member])]);
    assert_eq!(subquery.condition().selects_given(&customer, &sets), Ok(true));
    assert_eq!(subquery.condition().selects_given(&customer, &Sets(vec![HashSet::new()])), Ok(false));
}

#[test]
fn a_subquery_is_bound_to_rows_with_other_numbers() {
    let subquery = only("customer in (select id from customers where credit > 1)");
    let bound = subquery.bound(&facts("customers", CUSTOMERS, 20)).expect("the same columns");
    assert_eq!(bound.hash(), subquery.hash());
    let moved = row(CUSTOMERS, 20, &[("id", "5"), ("credit", "2")]);
    assert_eq!(bound.condition().selects(&moved), Ok(true));
    assert_eq!(subquery.condition().selects(&moved), Ok(false));
    let mut room = Vec::new();
    assert_eq!(
        bound.member(&moved, &mut room).expect("a member").map(<[u8]>::to_vec),
        member(&subquery, &[("id", "5")])
    );
    assert!(subquery.bound(&facts("customers", &CUSTOMERS[2..], 1)).is_err());
    let retyped: Vec<_> = CUSTOMERS.iter().map(|&(name, oid)| (name, if oid == 20 { 25 } else { oid })).collect();
    assert!(subquery.bound(&facts("customers", &retyped, 1)).is_err());
}

#[test]
fn without_members_a_subquery_is_no_guess() {
    let predicate = predicate("customer in (select id from customers)");
    assert!(matches!(predicate.selects(&order(&[("customer", "1")])), Err(Failure::Evaluation(_))));
    assert!(predicate.evaluate(&order(&[])).expect("a row").verdict.is_err());
}

#[test]
fn the_rows_that_a_member_concerns_are_told_by_a_column() {
    let field = |condition: &str| predicate(condition).operand_field(0);
    assert_eq!(field("customer in (select id from customers)"), Some(2));
    assert_eq!(field("region = 'a' and not (customer in (select credit from customers) or rate > 1)"), Some(2));
    assert_eq!(field("customer + 1 in (select id from customers)"), None);
    assert_eq!(field("5 in (select id from customers)"), None);
    assert_eq!(field("customer in (select id from customers) or id in (select id from customers)"), None);
    let value = |condition: &str, values: &[(&str, &str)]| {
        let member = member(&only(condition), values).expect("a member");
        predicate(condition).operand_value(0, &member)
    };
    let pinned = |field, text: &str| Some(Pinned { field, text: text.to_owned() });
    assert_eq!(value("customer in (select id from customers)", &[("id", "-5")]), pinned(2, "-5"));
    assert_eq!(value("region in (select region from customers)", &[("region", "a ")]), pinned(4, "a "));
    assert_eq!(value("mood in (select kind from customers)", &[("kind", "ok")]), pinned(6, "ok"));
    assert_eq!(value("customer in (select credit from customers)", &[("credit", "5")]), None);
    assert_eq!(value("amount in (select credit from customers)", &[("credit", "5")]), None);
    assert_eq!(value("code in (select code from customers)", &[("code", "a")]), None);
}

#[test]
fn parameters_are_shared_and_have_one_type() {
    let with = |condition: &str, value: &str| {
        let parameter = Parameter { type_name: None, value: Some(value.to_owned()) };
        Predicate::with_tables(condition, &[parameter], &orders(), &tables())
    };
    assert!(with("$1 in (select id from customers) and customer = $1", "5").is_ok());
    assert!(with("customer in (select id from customers where region = $1) and region = $1", "a").is_ok());
    assert!(with("customer in (select id from customers where id = $1) and region = $1", "5").is_err());
    assert!(with("customer in (select id from customers where kind = $1) and mood = $1", "ok").is_ok());
    assert!(with("mood = $1 and customer in (select id from customers where kind = $1)", "ok").is_ok());
    let same = with("customer in (select id from customers where kind = $1)", "ok").expect("a condition");
    assert_eq!(same.hash(), predicate("customer in (select id from customers where kind = 'ok')").hash());
}

#[test]
fn it_is_printed_as_sql() {
    let condition = "code in (select region from customers as c where c.active)";
    assert_eq!(
        predicate(condition).sql(),
        "((\"code\")::pg_catalog.text OPERATOR(pg_catalog.=) ANY \
         (SELECT \"region\" FROM \"public\".\"customers\" WHERE \"active\"))"
    );
    // The normal form, which is hashed, says the type.
    assert_eq!(
        predicate("not customer in (select id from customers)").normal_form(),
        "(NOT (\"customer\" OPERATOR(pg_catalog.=) ANY \
         (SELECT (\"id\")::pg_catalog.int8 FROM \"public\".\"customers\" WHERE ('true'::pg_catalog.bool))))"
    );
}

#[test]
fn a_shape_has_the_effects_of_its_sets() {
    let definition = |condition: &str| ShapeDefinition {
        table: Arc::new(TableName::new("public", "orders")),
        condition: condition.into(),
        parameters: Box::default(),
        columns: Box::default(),
        updates: Updates::FullRow,
    };
    let key = ["id".to_owned()];
    let condition = "customer in (select id from customers)";
    let made = Shape::with_tables(&definition(condition), &orders(), &key, &tables());
    let shape = made.expect("a shape");
    assert!(Shape::new(&definition(condition), &orders(), &key).is_err());
    let retyped: Vec<_> = CUSTOMERS.iter().map(|&(name, oid)| (name, if name == "id" { 23 } else { oid })).collect();
    let other = Shape::with_tables(&definition(condition), &orders(), &key, &[facts("customers", &retyped, 1)]);
    assert_ne!(other.expect("a shape").hash(), shape.hash());
    let subquery = &shape.predicate().subqueries()[0];
    let sets = Sets(vec![HashSet::from([member(subquery, &[("id", "1")])])]);
    let (inside, outside) = (order(&[("id", "9"), ("customer", "1")]), order(&[("id", "9"), ("customer", "2")]));
    let effect = |old: &BytesMut, new: &BytesMut| shape.effect_given(Some(old), Some(new), |_| true, &sets);
    assert_eq!(effect(&outside, &inside), Ok(Some(Effect::MoveIn)));
    assert_eq!(effect(&inside, &outside), Ok(Some(Effect::MoveOut)));
    assert_eq!(effect(&inside, &inside), Ok(None));
}
