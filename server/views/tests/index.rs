//! What the index tells shapes, and what it says of itself: `explanations.txt` has each condition with what serves it. With
//! `TIDEGATE_GOLDEN=write` they are written anew.

mod orders;

use tidegate_views::{Effect, EvaluationError, Failure, Index, IndexError, Parameter, Predicate, Reason, Room};

use orders::{predicate, route, row, table};

const CONDITIONS: &[&str] = &[
    "tenant = 7",
    "tenant in (7, 8, 9)",
    "7 = tenant and status = 'open'",
    "status = 'open' and price > 10 and tenant = 7",
    "price >= 5 and price < 10",
    "price between 5 and 10 and price <> 7",
    "price > 5",
    "price > 10 and price < 5",
    "tenant > 0.5",
    "status <> 'closed'",
    "status not in ('closed', 'lost')",
    "sku like 'ab%'",
    "sku like 'ab%c'",
    "sku like 'ab'",
    "sku not like 'ab%'",
    "sku like '%c'",
    "gone_at is null",
    "gone_at is not null",
    "gone_at is null or gone_at > '2024-01-01 00:00:00+00'",
    "gone_at is null and tenant is distinct from 7",
    "paid",
    "not paid",
    "paid is not true",
    "tenant = 7 or status = 'open'",
    "tenant = 7 or (status = 'open' and price > 10)",
    "(tenant = 7 or tenant = 8) and (status = 'open' or paid)",
    "tenant = 7 or price * 2 > 10",
    "tenant = 7 and price * 2 > 10",
    "price * 2 > 10",
    "status = sku",
    "tenant % 2 = 0 and price * 2 > 10",
    "tags @> '{new,big}'",
    "tags @> '{new}' and tenant = 7",
    "tags && '{new,big}'",
    "'new' = any (tags)",
    "tags <@ '{new,big}'",
    "not tags @> '{new}'",
    "true",
    "false",
    "tenant = null",
];

/// An index of conditions, whose ids are their places.
fn index(conditions: &[&str]) -> Index<u32> {
    let mut index = Index::new();
    for (id, condition) in (0..).zip(conditions) {
        index.insert(id, &predicate(condition), None).expect("a new shape");
    }
    index
}

#[test]
fn what_serves_a_condition_is_explained() {
    let explained =
        |condition: &&str| format!("{condition}\n    {}\n", Index::<u32>::new().explain(&predicate(condition)));
    let found: String = CONDITIONS.iter().map(explained).collect();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/explanations.txt");
    if std::env::var("TIDEGATE_GOLDEN").is_ok_and(|word| word == "write") {
        std::fs::write(path, &found).expect("the golden file can be written");
    }
    assert_eq!(found, std::fs::read_to_string(path).expect("the golden file is there"));
}

#[test]
fn subqueries_are_asked_for_each_row() {
    let nested =
        "tenant = 7 and (status in (select status from orders where sku not in (select sku from orders)) or paid)";
    let predicate = Predicate::with_tables(nested, &[], &table(), &[table()]).expect("a condition");
    assert_eq!(
        Index::<u32>::new().explain(&predicate).to_string(),
        "It asks subqueries: for each row of the table, 2 parts are evaluated, which read paid, status, tenant; and once more for \
         the rows that are concerned where values come or go in public.orders."
    );
    let mut index = Index::new();
    index.insert(1, &predicate, None).expect("a new shape");
    let routed = route(&index, None, Some("7|open|5|a|f|"), &mut Room::default());
    assert!(matches!(routed[0].effect, Err(Failure::Evaluation(_))), "it is no guess");
}

#[test]
fn what_is_there_is_explained_as_it_is_there() {
    let shapes = CONDITIONS.iter().copied().filter(|condition| !condition.starts_with("7 ="));
    let index = index(&shapes.collect::<Vec<_>>());
    for condition in CONDITIONS {
        let predicate = predicate(condition);
        let (now, alone) = (index.explain(&predicate), Index::<u32>::new().explain(&predicate));
        assert_eq!(now.each_row, alone.each_row, "{condition}");
        assert!(now.each_row || condition.starts_with("7 =") || now.served.iter().all(|served| served.crowd > 0));
    }
}

#[test]
fn an_update_is_tried_against_both_rows() {
    let index = index(&["tenant = 7", "price > 10", "status = 'open' and price > 10"]);
    let mut room = Room::default();
    let (cheap, dear) = ("7|open|5|a|t|", "7|open|15|a|t|");
    let mut told = |old, new| {
        let routed = route(&index, old, new, &mut room);
        routed.into_iter().map(|routed| (routed.id, routed.effect.expect("no failure"))).collect::<Vec<_>>()
    };
    assert_eq!(told(None, Some(cheap)), [(0, Effect::MoveIn)]);
    assert_eq!(told(Some(cheap), Some(dear)), [(0, Effect::Update), (1, Effect::MoveIn), (2, Effect::MoveIn)]);
    assert_eq!(told(Some(dear), Some(cheap)), [(0, Effect::Update), (1, Effect::MoveOut), (2, Effect::MoveOut)]);
    assert_eq!(
        told(Some(dear), Some("8|open|16|a|t|")),
        [(0, Effect::MoveOut), (1, Effect::Update), (2, Effect::Update)]
    );
    assert_eq!(told(Some(cheap), None), [(0, Effect::MoveOut)]);
    assert_eq!(told(Some(dear), Some(dear)), []);
    assert_eq!(told(Some("||||t|"), Some("||||f|")), []);
}

#[test]
fn an_update_without_a_change_of_a_selected_column_is_nothing() {
    let mut index = Index::new();
    let tenant = predicate("tenant = 7");
    index.insert("all", &tenant, None).expect("new");
    index.insert("status and sku", &tenant, Some(&[4, 2, 2])).expect("new");
    index.insert("paid", &tenant, Some(&[5])).expect("new");
    let mut told = Vec::new();
    let (old, new) = (row("7|open|5|a|t|"), row("7|open|5|b|t|"));
    index.route(Some(&old), Some(&new), &mut Room::default(), &mut told).expect("whole rows");
    let mut ids: Vec<_> = told.iter().map(|routed| routed.id).collect();
    ids.sort_unstable();
    assert_eq!(ids, ["all", "status and sku"]);
    // Another scale is another value for who sees it, and the same for who compares it.
    let price = self::index(&["price = 5"]);
    let routed = route(&price, Some("7|open|5|a|t|"), Some("7|open|5.00|a|t|"), &mut Room::default());
    assert_eq!(routed[0].effect, Ok(Effect::Update));
}

#[test]
fn a_failure_concerns_its_shape_alone() {
    let index = index(&["tenant = 7", "price / tenant > 1", "status = 'open' and price / tenant > 1"]);
    let routed = route(&index, None, Some("0|closed|5|a|t|"), &mut Room::default());
    let failed = Err(Failure::Evaluation(EvaluationError::DivisionByZero));
    assert_eq!(
        routed.iter().map(|routed| (routed.id, routed.effect.clone())).collect::<Vec<_>>(),
        [(1, failed.clone())]
    );
    // What is NULL refuses a row as WHERE does, whichever part is looked up.
    let routed = route(&index, None, Some("0||5|a|t|"), &mut Room::default());
    assert_eq!(routed.len(), 1);
    let routed = route(&index, Some("1|open|5|a|t|"), Some("0|open|5|a|t|"), &mut Room::default());
    assert_eq!(
        routed.iter().map(|routed| (routed.id, routed.effect.clone())).collect::<Vec<_>>(),
        [(1, failed.clone()), (2, failed)]
    );
}

#[test]
fn an_array_is_looked_up_by_each_of_its_elements() {
    let index = index(&["tags @> '{a,b}'", "tags && '{a,b}'", "'b' = any (tags)", "tags @> '{c}'", "tags is null"]);
    let mut room = Room::default();
    let mut told = |tags: &str| {
        let routed = route(&index, None, Some(&format!("7|open|5|a|t||{tags}")), &mut room);
        routed.iter().map(|routed| routed.id).collect::<Vec<_>>()
    };
    assert_eq!(told("{a,b,b}"), [0, 1, 2]);
    assert_eq!(told("{b,NULL}"), [1, 2]);
    assert_eq!(told("{c}"), [3]);
    assert_eq!(told("{}"), []);
    assert_eq!(told(""), [4]);
}

#[test]
fn it_is_read_by_many_at_once() {
    fn shared<T: Send + Sync>(_: &T) {}
    shared(&index(&["tenant = 7"]));
}

#[test]
fn a_damaged_row_is_refused_as_a_whole() {
    let index = index(&["tenant = 7"]);
    let mut routed = Vec::new();
    let damaged = [0x08, 0x80];
    index.route(None, Some(&damaged), &mut Room::default(), &mut routed).expect_err("no message");
    assert_eq!(routed, []);
    // A field twice is nobody's value: the shape that reads it hears of it.
    let twice = [0x08, 0x07, 0x08, 0x07];
    index.route(None, Some(&twice), &mut Room::default(), &mut routed).expect("a message");
    assert!(matches!(routed[0].effect, Err(Failure::Row(_))));
}

#[test]
fn equal_conditions_are_one_and_are_evaluated_once() {
    let same =
        ["tenant = 7 and price * 2 > 10", "price * 2 > 10 and 7 = tenant", "not (tenant <> 7 or price * 2 <= 10)"];
    let mut index = index(&same);
    assert_eq!((index.len(), index.condition_count()), (3, 1));
    let mut room = Room::default();
    let new = Some("7|open|15|a|t|");
    assert_eq!(route(&index, None, new, &mut room).len(), 3);
    assert_eq!(room.effort().evaluations, 1);
    assert!(index.remove(&0));
    assert!(!index.remove(&0));
    let ids: Vec<u32> = route(&index, None, new, &mut room).iter().map(|routed| routed.id).collect();
    assert_eq!(ids, [1, 2]);
    assert_eq!(index.insert(1, &predicate("paid"), None), Err(IndexError::Present));
    // A column that does not matter is not one of the condition's.
    let paid = self::index(&["paid", "paid and (true or price > 1)"]);
    assert_eq!(paid.condition_count(), 1);
}

#[test]
fn a_changed_description_makes_another_condition() {
    let mut narrower = table();
    narrower.columns[0].type_oid = 23;
    let mut index = Index::new();
    index.insert(1, &predicate("tenant = 7"), None).expect("new");
    index.insert(2, &Predicate::new("tenant = 7", &[], &narrower).expect("a condition"), None).expect("new");
    assert_eq!(index.condition_count(), 2);
    assert_eq!(route(&index, None, Some("7|open|15|a|t|"), &mut Room::default()).len(), 2);
    assert!(index.remove(&1) && index.remove(&2) && index.is_empty());
}

#[test]
fn hostile_conditions_are_bounded_and_the_bound_is_named() {
    let refused = |condition: &str, parameters: &[Parameter]| {
        let refusal = Predicate::new(condition, parameters, &table()).expect_err("too large");
        assert!(matches!(refusal.reason, Reason::TooLong { .. } | Reason::TooManyTerms { .. }), "{refusal}");
        assert!(refusal.to_string().contains("65536") || refusal.to_string().contains("1000"), "{refusal}");
    };
    let or = |count: usize| (0..count).map(|tenant| format!("tenant={tenant}")).collect::<Vec<_>>().join(" or ");
    let values = |count: usize| (0..count).map(|tenant| tenant.to_string()).collect::<Vec<_>>().join(",");
    refused(&or(10_000), &[]);
    refused(&format!("tenant in ({})", values(1_000_000)), &[]);
    let array = Parameter { type_name: Some("int8[]".to_owned()), value: Some(format!("{{{}}}", values(1_000_000))) };
    refused("tenant = any ($1)", &[array]);
    // The largest that are taken are looked up.
    let largest = [or(499), format!("tenant in ({})", values(998)), format!("tenant not in ({})", values(998))];
    let index = index(&largest.iter().map(String::as_str).collect::<Vec<_>>());
    let mut room = Room::default();
    let routed = route(&index, None, Some("7|open|15|a|t|"), &mut room);
    assert_eq!(routed.iter().map(|routed| routed.id).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(room.effort().evaluations, 0);
    let routed = route(&index, None, Some("5000|open|15|a|t|"), &mut room);
    assert_eq!(routed.iter().map(|routed| routed.id).collect::<Vec<_>>(), [2]);
}
