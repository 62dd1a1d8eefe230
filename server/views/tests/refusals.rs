//! What is refused, and with which words: `refusals.txt` has each condition with its message. With `TIDEGATE_GOLDEN=write`
//! the messages are written anew. Hostile conditions are refused at once.

use std::time::{Duration, Instant};

use tidegate_views::{
    CollationFacts, ColumnFacts, EnumFacts, Order, OrderBy, Parameter, Predicate, Reason, Refusal, TableFacts,
};

const CONDITIONS: &[&str] = &[
    "",
    "i",
    "i =",
    "i = 1 i",
    "i = 1;",
    "i = 1 -- and\n  and nothing",
    "t = 'a",
    "i /* open",
    "i = 0x10",
    "i = 1_000",
    "t = b'1'",
    "t = E'\\''",
    "t = E'a",
    "t = E'\\xff'",
    "t = $$a",
    "t = $1a",
    "t = $a",
    "i < s < 1",
    "i == 1",
    "t like t like t",
    "t like any (ta)",
    "t like any (t)",
    "t ~ '\\w'",
    "t ~ '(a'",
    "t ~ 'a**'",
    "t ~ '(a)\\1'",
    "t ~ 'é(?=a)'",
    "t ~ '(?i)a'",
    "t ~ '((a{200}){200}){200}'",
    "t ~ '[[:alpha:]]'",
    "t ~ '[[.a.]]'",
    "t ~ t",
    "t ~* 'a'",
    "x ~ 'a'",
    "i ~ 'a'",
    "t similar to '[a[b]'",
    "t similar to '[[.a.]]'",
    "t similar to 'a' escape 'ab'",
    "t ~ 'a)'",
    "t ~ '^*'",
    "t ~ '[z-a]'",
    "t ~ 'a{300}'",
    "t collate \"C\" ~ '[[:cntrl:]]'",
    "lower(t) = 'a'",
    "lower(x) = 'a'",
    "t in ('a', 'b') and x in ('a', 'b')",
    "x <> 'a'",
    "x is distinct from 'a'",
    "least(x, 'a') is null",
    "t between 'a' and 'b'",
    "x = any ('{a}')",
    "case x when 'a' then true end",
    "nullif(x, 'a') is null",
    "initcap(t) = 'A'",
    "random() < 0.5",
    "gen_random_uuid() is null",
    "clock_timestamp() > z",
    "nextval('s') = 1",
    "nothing(i) = 1",
    "i ### s = 1",
    "i = 1::nothing",
    "j @@ '$.a'",
    "i in (select 1)",
    "i in (select o, i from items)",
    "i in (select * from items)",
    "i in (select max(o) from items)",
    "i in (select o + 1 from items)",
    "i in (select distinct o from items)",
    "i in (select o from items order by o)",
    "i in (select o from items limit 1)",
    "i in (select o from items group by o)",
    "i in (select o from items union select 1)",
    "i in (select o from items, orders)",
    "i in (select o from items join orders on true)",
    "i in (select o from only items)",
    "i in (select o from (select 1) x)",
    "i in (select o from generate_series(1, 2) o)",
    "i in (select o from elsewhere.public.items)",
    "i in (select o",
    "i in (select o from",
    "i in (select o from items",
    "i in (select o from items where",
    "i in (select o from items) and j",
    "i in (select x from nowhere)",
    "i in (select p from items)",
    "i in (select o from items where p = 1)",
    "i in (select o from items where items.o = orders.i)",
    "i in (select o from items where o = s)",
    "i in (select o from items where o in (select i from orders where orders.i = items.o))",
    "i in (select i from orders inside where orders.i = 1)",
    "i in (select o from items where t = 'a' and t < 'b')",
    "i in (select o from items where o)",
    "i in (select o from items where o = $2)",
    "i in (select o from items where o = $1 and t = $1)",
    "i in (values (1), (2))",
    "i in (with x as (select 1) select 1 from x)",
    "i in (table items)",
    "i = (select o from items)",
    "i < any (select o from items)",
    "i = all (select o from items)",
    "exists (select o from items)",
    "(i, s) in (select o, o from items)",
    "t in (select o from items)",
    "i in (select t from items)",
    "t in (select x from items)",
    "x in (select t from items)",
    "d in (select n from items)",
    "z in (select ts from items)",
    "dt in (select ts from items)",
    "j in (select j from items)",
    "ia in (select ia from items)",
    "'sad' in (select e from items)",
    "b in (select e from items)",
    "x in (select k from items)",
    "i in (select o from items where o in (select o from items where o in (select o from items where o in (select o from items where o in (select o from items)))))",
    "(i, i) = 1",
    "(i, i) = (1, 2, 3)",
    "(i, i) in ((1, 2), 3)",
    "(i, i) is true",
    "(i, i) < (1, null)",
    "(i, t) < (1, 'a')",
    "user = 'a'",
    "other.i = 1",
    "i = 'a'",
    "i = 99999999999::int4",
    "i = 'infinity'::date",
    "i = t",
    "i and b",
    "i + 1",
    "'1' + '2' = 3",
    "i = 1 / 0",
    "d % 2 = 1",
    "t < 'a'",
    "t ilike 'a%'",
    "greatest(t, 'a') = 'a'",
    "x = 'a'",
    "x like 'a'",
    "t < 'a' collate \"de_DE\"",
    "t collate \"C\" = t collate \"POSIX\"",
    "z = '2024-02-29 12:00'",
    "z::date = '2024-02-29'",
    "z > now()",
    "dt = 'today'",
    "dt = z",
    "j < '{}'",
    "j = '{'",
    "js = '{}'",
    "jsonb_extract_path_text(j, 'a', null) = 'a'",
    "extract(year from z) = 2024",
    "age(z) > '1 day'",
    "gcd(i::numeric, 2) = 1",
    "(i, t) is distinct from (1, 'a', 2)",
    "js @> '{}'",
    "(j ->> 'a')::date = '2024-02-29'",
    "j::int = 1",
    "j[i] = '1'",
    "j[1.5] = '1'",
    "j['a':'b'] = '1'",
    "ia = 1",
    "ia @> '{a}'",
    "ia @> array['a']",
    "ia = '{{1}}'",
    "ia[1:2] = 1",
    "ia['a':2] = '{1}'",
    "ia[1:2",
    "ia[1][1][1][1][1][1][1] = 1",
    "i[1:2] = 1",
    "ia['a'] = 1",
    "i[1] = 1",
    "i = any(t)",
    "ta @> array[1]",
    "ta < '{a}'",
    "ia || t = '{1}'",
    "t || ia = 'a'",
    "i || s = '12'",
    "t || d = 'a1'",
    "t || z = 'a'",
    "js || js = '[]'",
    "j - 1.5 = '[]'",
    "j - dt is null",
    "array_position(ta, 1) = 1",
    "array_position('{a}'::bpchar[], t) = 1",
    "array_remove('{1}'::json[], js) is null",
    "array_append(ia, 'a') is null",
    "'{1,2}'::int[] || '{{{1}}}'::int[] is null",
    "trim_array(array[1, 2], 3) is null",
    "'1'::jsonb - 'a' is null",
    "array[i, t] is null",
    "array[] is null",
    "array_to_string(ta, ',') = 'a'",
    "ia && all(ia)",
    "upper(t) = 'A'",
    "strpos(x, 'a') = 1",
    "concat(t, t) = 'a'",
    "substring(t from 'a.') = 'a'",
    "substring(t similar 'a' escape '#') = 'a'",
    "overlay(t placing 'a' from 1) = 'a'",
    "length(i) = 1",
    "length(t, t, t) = 1",
    "abs(null) = 1",
    "power(i, 2) = 4",
    "nowhere.lower(t) = 'a'",
    "count(*) = 1",
    "z > current_timestamp",
    "dt = current_date",
    "z + interval '1 day' > z",
    "z > '2024-02-29 00:00:00+00'::timestamptz - interval '1 day'",
    "dt + '1 day' = dt",
    "date_trunc('month', dt) = dt",
    "date_trunc('decade', dt::timestamp) = dt::timestamp",
    "extract(century from dt) = 21",
    "extract(year from z) = 2024",
    "date_part('hour', z) = 1",
    "ir = '[2,1]'",
    "ir @> '1'",
    "ir @> s",
    "daterange(dt, dt) @> dt",
    "ir * ir = 'empty'",
    "iv = 'P1D'",
    "iv = '1.5 days'",
    "iv * 2 = iv",
    "z at time zone 'CET' = '2024-02-29'",
    "z at time zone interval '1 hour' = '2024-02-29'",
    "dt at time zone 'UTC' = '2024-02-29'",
    "z at local = '2024-02-29'",
    "to_char(dt, 'YYYY') = '2024'",
    "i = $2",
    "i = $1 and t = $1",
    "i::money = 1",
    "d::text = '1'",
    "i = any(i)",
    "i = array[1]",
];

fn table() -> TableFacts {
    let collation = |name: &str, deterministic| CollationFacts {
        name: name.to_owned(),
        is_default: name == "default",
        deterministic,
        is_c: false,
    };
    let columns = [
        ("i", 23, None),
        ("s", 21, None),
        ("b", 16, None),
        ("d", 701, None),
        ("t", 25, Some(collation("default", true))),
        ("x", 25, Some(collation("public.caseless", false))),
        ("z", 1184, None),
        ("dt", 1082, None),
        ("j", 3802, None),
        ("js", 114, None),
        ("ia", 1007, None),
        ("ta", 1009, Some(collation("default", true))),
        ("iv", 1186, None),
        ("ir", 3904, None),
    ];
    let column = |(field, (name, type_oid, collation)): (u32, (&str, u32, Option<CollationFacts>))| ColumnFacts {
        name: name.to_owned(),
        field,
        type_oid,
        collation,
        enum_type: None,
    };
    TableFacts {
        schema: "public".to_owned(),
        name: "orders".to_owned(),
        columns: (1..).zip(columns).map(column).collect(),
        default_collation: collation("default", true),
    }
}

/// What subqueries may read: the table itself, and another one.
fn others() -> [TableFacts; 2] {
    let collation = |name: &str, deterministic| CollationFacts {
        name: name.to_owned(),
        is_default: false,
        deterministic,
        is_c: false,
    };
    let columns = [
        ("o", 23, None),
        ("t", 25, None),
        ("x", 25, Some(collation("public.caseless", false))),
        ("k", 25, Some(collation("public.other", true))),
        ("n", 1700, None),
        ("ts", 1114, None),
        ("j", 3802, None),
        ("ia", 1007, None),
        ("e", 0, None),
    ];
    let column = |(field, (name, type_oid, collation)): (u32, (&str, u32, Option<CollationFacts>))| ColumnFacts {
        name: name.to_owned(),
        field,
        type_oid,
        collation,
        enum_type: (type_oid == 0).then(|| EnumFacts {
            schema: "public".to_owned(),
            name: "mood".to_owned(),
            labels: vec!["sad".to_owned()],
        }),
    };
    let columns = (1..).zip(columns).map(column).collect();
    [table(), TableFacts { name: "items".to_owned(), columns, ..table() }]
}

/// Conditions with parameters, of a type or none, and a value.
const WITH_PARAMETERS: &[(&str, &[(&str, &str)])] = &[
    ("i = $1", &[]),
    ("i = $0", &[("", "1")]),
    ("i = $1", &[("", "a")]),
    ("i = $1", &[("text", "a")]),
    ("i = $1", &[("nothing", "1")]),
    ("i = 1", &[("", "1")]),
    ("s = $1 and ia @> $1", &[("", "9")]),
    ("s = $1", &[("", "99999")]),
    ("z = $1", &[("timestamptz", "now")]),
    ("x = $1", &[("", "a")]),
    ("t < $1", &[("", "a")]),
    ("t ~ $1", &[("", "a(")]),
    ("i = any ($1)", &[("int4[]", "1,2")]),
    ("(i, s) = ($1, $1)", &[("", "1")]),
];

/// Conditions that are too much, each with what it is.
fn excessive() -> Vec<(&'static str, String)> {
    let deep = |open: &str, close: &str| format!("{}b{}", open.repeat(300), close.repeat(300));
    let query = "i in (select i from orders where s = 1)";
    let other = |n: usize| format!("i in (select i from orders where s = {n})");
    let mut between = "i between 1 and 2".to_owned();
    for _ in 0..12 {
        between = format!("({between}) between false and true");
    }
    vec![
        ("64 KiB and more", format!("t = '{}'", "a".repeat(65_536))),
        ("300 NOT", deep("not ", "")),
        ("300 parentheses", deep("(", ")")),
        ("300 subscripts", format!("ia{} = 1", "[1]".repeat(300))),
        ("10,000 terms", vec!["i = 1"; 10_000].join(" or ")),
        ("a million values", format!("i in ({})", vec!["1"; 1_000_000].join(","))),
        ("20,000 values of an array", format!("i = any ('{{{}}}')", vec!["1"; 20_000].join(","))),
        ("BETWEEN within BETWEEN", between),
        ("300 regular expressions", vec!["t ~ 'a{200}'"; 300].join(" or ")),
        ("20 subqueries", (0..20).map(other).collect::<Vec<_>>().join(" or ")),
        ("300 NOT before a subquery", format!("{}{query}", "not ".repeat(300))),
        ("300 NOT within a subquery", format!("i in (select i from orders where {})", deep("not ", ""))),
        (
            "10,000 terms within a subquery",
            format!("i in (select i from orders where {})", vec!["i = 1"; 5_000].join(" or ")),
        ),
    ]
}

/// Orders that are too much, or are none.
fn orders() -> Vec<(&'static str, Vec<&'static str>)> {
    vec![("33 terms of an order", vec!["i"; 33]), ("an order by text", vec!["i", "t"])]
}

fn refusal_of(condition: &str, parameters: &[Parameter]) -> Refusal {
    match Predicate::with_tables(condition, parameters, &table(), &others()) {
        Ok(predicate) => panic!("{condition} is accepted as {}", predicate.sql()),
        Err(refusal) => refusal,
    }
}

fn refusal_of_order(terms: &[&str]) -> Refusal {
    let by = |term: &&str| OrderBy { expression: (*term).to_owned(), descending: false, nulls_first: None };
    let by: Vec<OrderBy> = terms.iter().map(by).collect();
    Order::new(&by, &["i".to_owned()], &table()).expect_err("refused").1
}

fn refusals() -> Vec<(String, Refusal)> {
    let usual = |condition: &&str| {
        let asks = ["$1", "$2"].iter().any(|number| condition.contains(number));
        let parameters = asks.then(|| Parameter { type_name: None, value: Some("1".into()) });
        (format!("{condition:?}"), refusal_of(condition, parameters.as_slice()))
    };
    let with_parameters = |(condition, given): &(&str, &[(&str, &str)])| {
        let parameter = |(name, value): &(&str, &str)| Parameter {
            type_name: Some((*name).to_owned()).filter(|name| !name.is_empty()),
            value: Some((*value).to_owned()),
        };
        let parameters: Vec<Parameter> = given.iter().map(parameter).collect();
        (format!("{condition:?} with {given:?}"), refusal_of(condition, &parameters))
    };
    let of_excess = |(what, condition): (&str, String)| (what.to_owned(), refusal_of(&condition, &[]));
    let of_orders = |(what, terms): (&str, Vec<&str>)| (what.to_owned(), refusal_of_order(&terms));
    let all = CONDITIONS.iter().map(usual).chain(WITH_PARAMETERS.iter().map(with_parameters));
    all.chain(excessive().into_iter().map(of_excess)).chain(orders().into_iter().map(of_orders)).collect()
}

/// The reasons by name, and that of one.
macro_rules! reasons {
    ($($reason:pat),+ $(,)?) => {
        /// A new reason does not compile before it stands here.
        fn name(reason: &Reason) -> &'static str {
            match reason { $($reason => stringify!($reason)),+ }
        }

        const REASONS: &[&str] = &[$(stringify!($reason)),+];
    };
}

reasons![
    Reason::TooLong { .. },
    Reason::TooManyOrders { .. },
    Reason::TooDeep { .. },
    Reason::TooManyTerms { .. },
    Reason::TooLarge { .. },
    Reason::QueriesTooDeep { .. },
    Reason::TooManyQueries { .. },
    Reason::UnreadableTable { .. },
    Reason::Correlated { .. },
    Reason::Unclosed { .. },
    Reason::Unexpected { .. },
    Reason::Unsupported { .. },
    Reason::UnknownColumn { .. },
    Reason::Regex { .. },
    Reason::NoOperator { .. },
    Reason::NoFunction { .. },
    Reason::WrongType { .. },
    Reason::Malformed { .. },
    Reason::Collation { .. },
    Reason::TwoCollations { .. },
    Reason::UnknownParameter { .. },
    Reason::UnusedParameter { .. },
    Reason::InconsistentParameter { .. },
    Reason::AlwaysFails { .. },
];

#[test]
fn every_reason_has_a_line() {
    let found: Vec<&str> = refusals().iter().map(|(_, refusal)| name(&refusal.reason)).collect();
    let missing: Vec<_> = REASONS.iter().filter(|name| !found.contains(name)).collect();
    assert!(missing.is_empty(), "no condition is refused with {missing:?}");
}

#[test]
fn refusals_say_where_and_what_to_do() {
    let messages: Vec<_> = refusals().into_iter().map(|(of, refusal)| (of, refusal.to_string())).collect();
    // What is wrong, and behind a semicolon what to do.
    let silent: Vec<_> = messages.iter().filter(|(_, message)| !message.contains("; ")).collect();
    assert!(silent.is_empty(), "these do not say what to do: {silent:#?}");
    let found: Vec<String> = messages.iter().map(|(of, message)| format!("{of}\n    {message}\n")).collect();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/refusals.txt");
    if std::env::var("TIDEGATE_GOLDEN").is_ok_and(|word| word == "write") {
        std::fs::write(path, found.join("")).expect("the golden file can be written");
    }
    let expected = std::fs::read_to_string(path).expect("the golden file is there");
    assert_eq!(found.join(""), expected);
}

#[test]
fn hostile_conditions_are_refused_at_once() {
    let chained = |part: &str, count: usize| vec!["i = 1"; count].join(part);
    let nested = |open: &str, close: &str, count: usize| format!("{}b{}", open.repeat(count), close.repeat(count));
    let mut between = "i between 1 and 2".to_owned();
    for _ in 0..40 {
        between = format!("({between}) between false and true");
    }
    let hostile = [
        nested("not ", "", 16_000),
        nested("(", ")", 30_000),
        nested("(", "", 60_000),
        format!("i = {}1", "- ".repeat(30_000)),
        format!("i = 1{}", " + 1".repeat(16_000)),
        format!("t = 'a'{}", " || 'a'".repeat(900)),
        format!("b{}", " is null".repeat(8_000)),
        format!("i{} = 1", "::int4".repeat(10_000)),
        chained(" and ", 2_000),
        format!("i in ({})", vec!["1"; 30_000].join(",")),
        format!("i in ({})", vec!["1"; 1_000_000].join(",")),
        format!("i = any ('{{{}}}')", vec!["1"; 30_000].join(",")),
        nested("case when ", " then b end", 3_000),
        between,
        format!("ia @> '{{{}}}'", vec!["1"; 30_000].join(",")),
        format!("ia = array[{}]", vec!["1"; 2_000].join(",")),
        format!("j = '{}{}'", "[".repeat(30_000), "]".repeat(30_000)),
        format!("j @> '[{}]'", vec!["1"; 30_000].join(",")),
        format!("j{} is null", " -> 'a'".repeat(9_000)),
        format!("ia{} = 1", "[1]".repeat(20_000)),
        format!("{}t{} = 'a'", "lower(".repeat(10_000), ")".repeat(10_000)),
        format!("i = {}1", "~ ".repeat(30_000)),
        format!("dt = dt{}", " + 1".repeat(10_000)),
        format!("t = E'{}", "\\n".repeat(30_000)),
        "$a$".repeat(20_001),
        format!("t ~ '{}'", "(".repeat(30_000)),
        format!("t ~ '{}'", "a{255}".repeat(9_000)),
        format!("t ~ '{}a{}'", "(".repeat(40), "{200})".repeat(40)),
        format!("t similar to '{}'", "(%".repeat(20_000)),
        vec!["t ~ '.{250}.{250}'"; 900].join(" or "),
        vec!["t ~ 'a'"; 900].join(" or "),
        "'".repeat(65_535),
        "/*".repeat(32_000),
        "\"".repeat(65_535),
        format!("{}i = 1{}", "i in (select i from orders where ".repeat(1_500), ")".repeat(1_500)),
        vec!["i in (select i from orders)"; 2_000].join(" or "),
        format!("i in (select i from orders where {})", chained(" and ", 2_000)),
        format!("i in (select i from orders where t in ({}))", vec!["'a'"; 15_000].join(",")),
        format!("i in (select i from orders where {}i = 1", "(".repeat(60_000)),
    ];
    for condition in hostile {
        let start = Instant::now();
        let refusal = Predicate::with_tables(&condition, &[], &table(), &others()).expect_err("refused");
        assert!(start.elapsed() < Duration::from_secs(5), "{refusal}");
    }
}

/// What repeats a subquery repeats all that it is.
#[test]
fn subqueries_are_repeated_within_bounds() {
    let mut repeated = format!("b in (select b from orders where t in ({}))", vec!["'abcdefgh'"; 900].join(","));
    for _ in 0..12 {
        repeated = format!("({repeated}) between false and true");
    }
    let refusal = Predicate::with_tables(&repeated, &[], &table(), &others()).expect_err("refused");
    assert!(matches!(refusal.reason, Reason::TooLarge { .. }), "{refusal}");
}

#[test]
fn a_subquery_needs_tables() {
    let refusal = Predicate::new("b or i in (select i from orders)", &[], &table()).expect_err("no table is given");
    assert_eq!(refusal.place.column, 26);
    assert!(matches!(refusal.reason, Reason::UnreadableTable { .. }), "{refusal}");
}

#[test]
fn parameters_are_arrays_and_json_where_their_place_says_so() {
    let sql = |text: &str, type_name: Option<&str>, value: &str| {
        let parameter = Parameter { type_name: type_name.map(str::to_owned), value: Some(value.to_owned()) };
        Predicate::new(text, &[parameter], &table()).map(|predicate| predicate.sql().to_owned())
    };
    let contains = r#"("ia" OPERATOR(pg_catalog.@>) ('{"1","2"}'::pg_catalog.int4[]))"#;
    assert_eq!(sql("ia @> $1", None, "{1,2}").as_deref(), Ok(contains));
    assert_eq!(sql("ia @> $1", Some("int4[]"), "{1,2}").as_deref(), Ok(contains));
    assert!(sql("ia @> $1", Some("int8[]"), "{1,2}").is_err());
    assert!(sql("ia @> $1 and i = any ($1)", None, "{1,2}").is_ok());
    assert!(sql("i = any ($1) and ia @> $1", None, "{1,2}").is_ok());
    assert!(sql("j @> $1", None, "{\"a\": 1}").is_ok());
    assert!(sql("j ->> $1 = 'a'", None, "k").is_ok());
    assert!(sql("j @> $1", None, "{a}").is_err());
    assert!(sql("i = any (ia) and iv < $1", None, "1 day").is_ok());
}

#[test]
fn the_place_is_counted_in_lines_and_characters() {
    let refusal = Predicate::new("t = 'é'\n  and é = 1", &[], &table()).expect_err("no such column");
    assert_eq!((refusal.place.line, refusal.place.column, refusal.place.offset), (2, 7, 15));
    assert!(matches!(refusal.reason, Reason::UnknownColumn { .. }));
}
