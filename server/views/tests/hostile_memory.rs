//! What definitions cost in memory that are made to cost much: refused or accepted, and however they are written, it is bounded. Counted, not
//! timed.

use allocation_counter::measure;
use bytes::BytesMut;
use tidegate_schema::{ColumnSpec, RowEncoder, TypeShape, Value, ValueKind};
use tidegate_views::{CollationFacts, ColumnFacts, EvaluationError, Parameter, Predicate, TEXT_BYTES_MAX, TableFacts};

/// The most that is held at a time while a definition of at most 64 KiB is read.
const PEAK_BYTES_MAX: u64 = 48 << 20;
/// Of one that is longer, besides its text: it is not read.
const UNREAD_BYTES_MAX: u64 = 64 << 10;

fn table() -> TableFacts {
    let collation = CollationFacts { name: "default".to_owned(), is_default: true, deterministic: true, is_c: true };
    let columns = [("tenant", 20), ("status", 25), ("sku", 25), ("note", 25), ("doc", 3802)];
    let column = |(field, (name, type_oid)): (u32, (&str, u32))| ColumnFacts {
        name: name.to_owned(),
        field,
        type_oid,
        collation: (type_oid == 25).then(|| collation.clone()),
        enum_type: None,
    };
    TableFacts {
        schema: "public".to_owned(),
        name: "orders".to_owned(),
        columns: (1..).zip(columns).map(column).collect(),
        default_collation: collation.clone(),
    }
}

/// What has been held at most, what stays of it, and whether it was accepted.
fn cost(condition: &str, parameters: &[Parameter]) -> (u64, u64, bool) {
    let (table, mut predicate) = (table(), None);
    let reading = measure(|| predicate = Predicate::new(condition, parameters, &table).ok());
    (reading.bytes_max, u64::try_from(reading.bytes_current).unwrap_or_default(), predicate.is_some())
}

/// `((a || a) || (a || a))`, so many times.
fn doubled(part: &str, times: usize) -> String {
    (0..times).fold(part.to_owned(), |half, _| format!("({half} || {half})"))
}

/// As long as a condition may be, of a part that comes again and again.
fn filled(before: &str, part: &str, between: &str, after: &str) -> String {
    let room = TEXT_BYTES_MAX - before.len() - after.len();
    let count = (room + between.len()) / (part.len() + between.len());
    format!("{before}{}{after}", vec![part; count].join(between))
}

fn hostile() -> Vec<(&'static str, String)> {
    let mut between = "tenant between 1 and 2".to_owned();
    while between.len() < 2_000 {
        between = format!("({between}) between false and true");
    }
    vec![
        ("NOT in NOT", filled("", "not ", "", "tenant = 1")),
        ("parentheses", filled("", "(", "", "tenant = 1")),
        ("10,000 terms", filled("", "tenant=1", " or ", "")),
        ("terms of AND and OR", filled("", "(tenant=1 and tenant=2)", " or ", "")),
        ("a sum", filled("tenant = ", "1", "+", "")),
        ("values of IN", filled("tenant in (", "1", ",", ")")),
        ("values of an array", filled("tenant = any ('{", "1", ",", "}')")),
        ("rows of IN", filled("(tenant, tenant) in (", "(1,2)", ",", ")")),
        ("CASE in CASE", filled("", "case when ", "", "tenant = 1")),
        ("BETWEEN in BETWEEN", between),
        ("repetitions in repetitions", filled("sku ~ '", "a{255}", "", "'")),
        ("repetitions of repetitions", format!("sku ~ '{}a{}'", "(".repeat(40), "{200})".repeat(40))),
        ("branches", filled("sku ~ '(", "a*a*a*b", "|", ")*$'")),
        ("classes", filled("sku ~ '", "[^a-z0-9]+", "", "'")),
        ("many patterns", filled("", "sku ~ '.{200}.{200}'", " or ", "")),
        ("LIKE", filled("sku like '", "%_", "", "'")),
        ("SIMILAR TO", filled("sku similar to '", "(%|_)*", "", "'")),
        ("a long text", filled("status = '", "x", "", "'")),
        ("JSON", filled("'", "[", "", "'::jsonb is null")),
        ("comments", filled("", "/*", "", "")),
        ("a constant that is repeated", "sku = repeat('x', 67108864)".to_owned()),
        ("a constant that is filled", "sku = lpad('x', 67108864)".to_owned()),
        (
            "a constant that grows in steps",
            format!("sku = {}", "replace(".repeat(90) + "'x'" + &", 'x', 'xxxx')".repeat(90)),
        ),
        ("constants that are repeated", filled("", "sku = repeat('x', 9000)", " or ", "")),
        ("arrays that are joined", filled("", "array['a','b','c','d','e','f','g','h']", " || ", " is null")),
        ("a constant that is split", "string_to_array(repeat('x', 900000), null) is null".to_owned()),
        ("constants that are joined", filled("sku = ", "repeat('x', 900)", " || ", "")),
    ]
}

#[test]
fn whatever_a_definition_says_reading_it_takes_bounded_memory() {
    let mut most = (0, "");
    for (what, condition) in hostile() {
        assert!(condition.len() <= TEXT_BYTES_MAX, "{what}: {} bytes", condition.len());
        let (peak, held, is_accepted) = cost(&condition, &[]);
        let answer = if is_accepted { "accepted" } else { "refused" };
        println!("{what}: {answer}, {} KiB at most, {} KiB held", peak >> 10, held >> 10);
        assert!(peak <= PEAK_BYTES_MAX, "{what}: {peak} bytes");
        most = most.max((peak, what));
    }
    println!("the most: {} KiB, for {}", most.0 >> 10, most.1);
}

#[test]
fn a_definition_that_is_too_long_is_not_read() {
    let values = |count: usize| vec!["1"; count].join(",");
    let parameter = |count: usize| Parameter { type_name: None, value: Some(format!("{{{}}}", values(count))) };
    for (condition, parameters) in [
        (format!("tenant in ({})", values(1_000_000)), Vec::new()),
        (format!("{}tenant = 1", "not ".repeat(1_000_000)), Vec::new()),
        (format!("sku ~ '{}'", "(a*)*".repeat(1_000_000)), Vec::new()),
        ("tenant = any ($1)".to_owned(), vec![parameter(1_000_000)]),
    ] {
        let (peak, _, is_accepted) = cost(&condition, &parameters);
        assert!(!is_accepted && peak <= UNREAD_BYTES_MAX, "{peak} bytes for {} bytes", condition.len());
    }
}

/// Functions make more of a row's values than there is: an error, before there is much of it.
#[test]
fn what_grows_while_a_row_is_looked_at_is_bounded() {
    let table = table();
    let mut row = BytesMut::new();
    let columns: Vec<ColumnSpec> = table.columns.iter().map(spec).collect();
    let note = "n".repeat(8 << 10);
    let doc = format!("[\"{note}\"]");
    let values = [
        Value::Text(b"7"),
        Value::Null,
        Value::Text(b"sku"),
        Value::Text(note.as_bytes()),
        Value::Text(doc.as_bytes()),
    ];
    RowEncoder::new(&columns).encode(values.into_iter(), &mut row).expect("values of the types");
    for condition in [
        ["length(repeat(sku, 60000000)) > 0"; 300].join(" or "),
        ["length(repeat(sku, 60000)) < 0"; 300].join(" or "),
        "length(lpad(sku, 60000000)) > 0 or length(rpad(sku, 60000000, sku)) > 0".to_owned(),
        format!("{}sku{} = ''", "replace(".repeat(90), ", 's', 'sss')".repeat(90)),
        "cardinality(string_to_array(repeat(sku, 60000), null)) > 0".to_owned(),
        format!("array_replace(string_to_array(repeat(sku, 600), null), 's', '{}') is null", "x".repeat(60_000)),
        ["array[repeat(sku, 6000)] is null"; 100].join(" or "),
        format!("array[{}] is null", ["note"; 900].join(", ")),
        format!("({})::text = ''", doubled("doc", 9)),
        format!("{} #>> '{{}}' = ''", doubled("doc", 9)),
        format!("cardinality(array_replace({}, 'sku', note)) > 0", doubled("string_to_array(sku, ',')", 8)),
    ] {
        let predicate = Predicate::new(&condition, &[], &table).expect("a condition");
        let mut outcome = None;
        let evaluating = measure(|| outcome = predicate.evaluate(&row).ok());
        let verdict = outcome.expect("the row fits").verdict;
        assert!(matches!(verdict, Err(EvaluationError::GrowsTooLarge { .. })), "{verdict:?}");
        let (peak, total) = (evaluating.bytes_max, evaluating.bytes_total);
        assert!(peak <= 4 << 20 && total <= 256 << 20, "{peak} bytes at a time, {total} in all for {condition:.80}");
    }
}

fn spec(column: &ColumnFacts) -> ColumnSpec {
    ColumnSpec {
        name: column.name.clone(),
        attnum: 0,
        type_oid: column.type_oid,
        type_name: String::new(),
        codec: ValueKind::of(column.type_oid, TypeShape::Base),
        key: false,
        field: column.field,
    }
}

/// As many terms as are allowed, each of them as long as there is room for.
#[test]
fn the_largest_definitions_that_are_accepted_are_small() {
    let term = |number: usize| format!("sku = '{number:0>115}'");
    let terms: Vec<String> = (0..490).map(term).collect();
    let values: Vec<String> = (0..950).map(|number| format!("'{number:0>62}'")).collect();
    let text = "x".repeat(TEXT_BYTES_MAX - 12);
    for condition in [terms.join(" or "), format!("sku in ({})", values.join(",")), format!("status = '{text}'")] {
        let (peak, held, is_accepted) = cost(&condition, &[]);
        assert!(is_accepted && condition.len() > 60_000, "{} bytes, accepted: {is_accepted}", condition.len());
        println!("{} KiB of text: {} KiB at most, {} KiB held", condition.len() >> 10, peak >> 10, held >> 10);
        assert!(peak <= PEAK_BYTES_MAX / 4 && held <= 4 << 20, "{peak} bytes, {held} of them held");
    }
}
