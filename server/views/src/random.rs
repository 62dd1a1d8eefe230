//! Random conditions and rows for tests: every type, with its awkward values, and conditions that are often true.

use bytes::BytesMut;
use rand::seq::IndexedRandom;
use rand::{RngExt, rngs::StdRng};
use tidegate_schema::{ColumnSpec, RowEncoder, TypeShape, Value, ValueKind};

use crate::{CollationFacts, ColumnFacts, EnumFacts, Members, Membership, TableFacts};

/// Columns by name, type, OID, and values in PostgreSQL's text.
const COLUMNS: &[(&str, &str, u32, &[&str])] = &[
    ("b", "bool", 16, &["t", "f"]),
    ("s", "int2", 21, &["0", "1", "-1", "7"]),
    ("i", "int4", 23, &["0", "1", "2", "3", "-1", "2147483647", "-2147483648"]),
    ("l", "int8", 20, &["0", "1", "2", "42", "9223372036854775807"]),
    ("n", "numeric", 1700, &["0", "0.00", "1", "1.0", "-1.5", "0.1", "NaN", "Infinity", "-Infinity", "1e3"]),
    ("r", "real", 700, &["0", "-0", "1.5", "0.1", "NaN", "Infinity", "-Infinity"]),
    ("d", "float8", 701, &["0", "-0", "1.5", "0.1", "NaN", "Infinity", "-Infinity", "5e-324"]),
    ("t", "text", 25, &["", "a", "ab", "abc", "a ", "a%c", "a_c", "b", "é"]),
    ("v", "varchar", 1043, &["", "a", "a ", "ab"]),
    ("c", "bpchar", 1042, &["     ", "a    ", "ab   ", "a b  "]),
    ("u", "uuid", 2950, &["00000000-0000-0000-0000-000000000000", "123e4567-e89b-12d3-a456-426614174000"]),
    ("dt", "date", 1082, &["2024-02-29", "2000-01-01", "0044-03-15 BC", "infinity", "-infinity"]),
    ("ts", "timestamp", 1114, &["2024-02-29 12:34:56.789", "2000-01-01 00:00:00", "infinity", "-infinity"]),
    ("tz", "timestamptz", 1184, &["2024-02-29 12:34:56+00", "infinity", "0044-03-15 01:00:00+00 BC"]),
    ("tm", "time", 1083, &["00:00:00", "12:34:56.000001", "24:00:00"]),
    ("y", "bytea", 17, &["\\x", "\\x00", "\\x00ff", "\\xff"]),
    ("e", "mood", 0, &["sad", "ok", "happy"]),
    ("o", "oid", 26, &["0", "1", "42", "4294967295"]),
    ("ia", "int4[]", 1007, &["{}", "{1}", "{1,2}", "{3,NULL,1}", "{{1,2},{3,4}}"]),
    ("ta", "text[]", 1009, &["{}", "{a}", "{a,b}", "{NULL}", "{ab,NULL,b}"]),
];

/// A label that came later than the table's description.
const NEW_LABEL: &str = "new";

pub(crate) fn table() -> TableFacts {
    let collation = CollationFacts { name: "default".to_owned(), is_default: true, deterministic: true, is_c: true };
    let column = |(field, (name, _, oid, _)): (u32, &(&str, &str, u32, _))| ColumnFacts {
        name: (*name).to_owned(),
        field,
        type_oid: *oid,
        collation: matches!(oid, 25 | 1042 | 1043).then(|| collation.clone()),
        enum_type: (*oid == 0).then(|| EnumFacts {
            schema: "public".to_owned(),
            name: "mood".to_owned(),
            labels: ["sad", "ok", "happy"].map(str::to_owned).to_vec(),
        }),
    };
    TableFacts {
        schema: "public".to_owned(),
        name: "rows".to_owned(),
        columns: (1..).zip(COLUMNS).map(column).collect(),
        default_collation: collation.clone(),
    }
}

fn encoder() -> RowEncoder {
    let column = |(field, (name, type_name, oid, _)): (u32, &(&str, &str, u32, _))| ColumnSpec {
        name: (*name).to_owned(),
        attnum: 0,
        type_oid: *oid,
        type_name: (*type_name).to_owned(),
        codec: ValueKind::of(*oid, if *oid == 0 { TypeShape::Enum } else { TypeShape::Base }),
        key: false,
        field,
    };
    RowEncoder::new(&(1..).zip(COLUMNS).map(column).collect::<Vec<_>>())
}

pub(crate) struct Random {
    pub(crate) source: StdRng,
    encoder: RowEncoder,
    /// May conditions have subqueries, of the same table?
    asks: bool,
}

/// Sets of subqueries that have nothing to do with any rows: each says the same of the same value, whatever it is.
pub(crate) struct AnySets;

impl Members for AnySets {
    fn membership(&self, subquery: usize, member: Option<&[u8]>) -> Option<bool> {
        let sum = |bytes: &[u8]| bytes.iter().fold(subquery, |sum, &byte| sum * 31 % 1_009 + usize::from(byte));
        let contains = member.is_some_and(|member| sum(member) % 2 == 0);
        Membership { contains, has_null: subquery % 3 == 1, is_empty: subquery % 3 == 2 }.of(member)
    }
}

impl Random {
    pub(crate) fn new(source: StdRng) -> Self {
        Random { source, encoder: encoder(), asks: false }
    }

    /// With subqueries in conditions.
    pub(crate) fn asking(source: StdRng) -> Self {
        Random { asks: true, ..Random::new(source) }
    }

    fn one_in(&mut self, count: u32) -> bool {
        self.source.random_ratio(1, count)
    }

    fn pick<'p>(&mut self, choices: &[&'p str]) -> &'p str {
        choices.choose(&mut self.source).copied().unwrap_or_default()
    }

    fn value(&mut self, column: usize) -> Option<&'static str> {
        if self.one_in(6) {
            return None;
        }
        let (name, _, _, pool) = COLUMNS[column];
        if name == "e" && self.one_in(40) { Some(NEW_LABEL) } else { Some(self.pick(pool)) }
    }

    pub(crate) fn values(&mut self) -> Vec<Option<&'static str>> {
        (0..COLUMNS.len()).map(|column| self.value(column)).collect()
    }

    /// Other values in a few columns.
    pub(crate) fn updated(&mut self, values: &[Option<&'static str>]) -> Vec<Option<&'static str>> {
        let mut updated = values.to_vec();
        for _ in 0..self.source.random_range(0..4) {
            let column = self.source.random_range(0..COLUMNS.len());
            updated[column] = self.value(column);
        }
        updated
    }

    pub(crate) fn row(&self, values: &[Option<&'static str>]) -> BytesMut {
        let mut row = BytesMut::new();
        let values = values.iter().map(|value| value.map_or(Value::Null, |text| Value::Text(text.as_bytes())));
        self.encoder.encode(values, &mut row).expect("values of the types");
        row
    }

    /// Fields that a shape selects.
    pub(crate) fn fields(&mut self) -> Option<Vec<u32>> {
        let count = self.source.random_range(1..4);
        let field = |_| self.source.random_range(1..=COLUMNS.len() as u32);
        let fields = (0..count).map(field).collect();
        if self.one_in(2) { None } else { Some(fields) }
    }

    pub(crate) fn condition(&mut self, depth: usize) -> String {
        if depth > 0 && self.source.random_ratio(3, 5) {
            let below = depth - 1;
            let (a, b, c) = (self.condition(below), self.condition(below), self.condition(below));
            return match self.source.random_range(0..9) {
                0..=2 => format!("({a}) and ({b})"),
                3 => format!("({a}) and ({b}) and ({c})"),
                4..=5 => format!("({a}) or ({b})"),
                6 => format!("not ({a})"),
                7 => format!("({a}) is {}", self.pick(&["true", "false", "not true", "not false", "unknown"])),
                _ => format!("case when {a} then {b} else {c} end"),
            };
        }
        if self.asks && self.one_in(5) {
            return self.subquery(depth);
        }
        match self.source.random_range(0..16) {
            0..=1 => self.unindexed(),
            2..=3 => self.containment(),
            _ => self.comparison(),
        }
    }

    fn column(&mut self) -> usize {
        self.source.random_range(0..COLUMNS.len())
    }

    fn constant(&mut self, column: usize) -> String {
        let (_, type_name, _, pool) = COLUMNS[column];
        match self.source.random_range(0..12) {
            0 => "null".to_owned(),
            1 => format!("'{}'::{type_name}", self.pick(pool)),
            _ => format!("'{}'", self.pick(pool)),
        }
    }

    fn comparison(&mut self) -> String {
        let column = self.column();
        let name = COLUMNS[column].0;
        let (x, y, z) = (self.constant(column), self.constant(column), self.constant(column));
        let not = self.pick(&["", "not "]);
        let op = self.pick(&["=", "=", "<>", "<", "<=", ">", ">="]);
        match self.source.random_range(0..15) {
            0..=3 => format!("{name} {op} {x}"),
            4 => format!("{x} {op} {name}"),
            5 => format!("{name} {not}in ({x}, {y}, {z})"),
            6 => format!("{name} {not}between {x} and {y}"),
            7 => format!("{name} >= {x} and {name} < {y}"),
            8 => format!("{name} is {not}null"),
            9 => format!("{name} is {not}distinct from {x}"),
            10 => format!("{name} {op} {} (array[{x}, {y}]::{}[])", self.pick(&["any", "all"]), COLUMNS[column].1),
            11 => {
                let pattern = self.pick(&["a%", "ab%", "a", "%", "", "a_c", "a%c", "%c", "a\\%c", "é%", "a\\"]);
                format!("{} {not}like '{pattern}'", self.pick(&["t", "v", "c"]))
            }
            12 => self.pick(&["b", "not b", "b = true", "b <> true", "b is true", "b is not true"]).to_owned(),
            13 => self
                .pick(&[
                    "i = 1.0",
                    "i > 0.5",
                    "s = 1.5::float8",
                    "l <= 1e2",
                    "i in (1, 2.5)",
                    "c = 'a'::text",
                    "n = 1.5::float8",
                    "dt < ts",
                    "dt::timestamp < '2024-01-01'",
                    "i::text = '1'",
                ])
                .to_owned(),
            _ => self.pick(&["true", "false", "null", "1 = 1", "null::int4 = 1"]).to_owned(),
        }
    }

    fn subquery(&mut self, depth: usize) -> String {
        let column = COLUMNS[self.source.random_range(0..18)].0;
        let operand = self.pick(&[column, column, "i + 1", "1 / i", "null", "case when b then i end"]);
        let (selected, not) = (self.pick(&[column, "i", "l", "n"]), self.pick(&["", "not "]));
        let condition = match self.source.random_range(0..3) {
            0 => self
                .pick(&["", " where b and i = 1", " where 1 = i and b = true", " where i in (select l from rows)"])
                .to_owned(),
            1 => format!(" where {}", self.comparison()),
            _ => format!(" where {}", self.condition(depth.saturating_sub(1))),
        };
        format!("{operand} {not}in (select {selected} from rows{condition})")
    }

    fn containment(&mut self) -> String {
        self.pick(&[
            "ia @> '{1}'",
            "ia @> '{1,2}'",
            "ia @> '{3,1,1}' and ia @> '{2}'",
            "'{1,3}' <@ ia",
            "ia && '{2,3}'",
            "'{9,3}' && ia",
            "ia && '{}'",
            "ia @> '{}'",
            "ia @> '{1,NULL}'",
            "ia <@ '{1,2}'",
            "not ia @> '{1}'",
            "ia @> '{1}' is not true",
            "1 = any (ia)",
            "2 < any (ia)",
            "1 <> all (ia)",
            "2 <> any (ia)",
            "ta @> array['a', 'b']",
            "'a' = any (ta)",
            "ta && '{b}' and ta && '{a,ab}'",
            "ta is null",
        ])
        .to_owned()
    }

    /// What no lookup serves, and often what fails.
    fn unindexed(&mut self) -> String {
        self.pick(&[
            "1 / i > 0",
            "l % s = 0",
            "i + 1 > l",
            "n / i > 1",
            "i = l",
            "t = v",
            "t || v = 'aa'",
            "t || i = 'a1'",
            "ia || i @> '{1}'",
            "ia || null || ia = '{}'",
            "array[i, s] && ia",
            "s = any (array[i, l, 1])",
            "array_position(ia, i) = 1",
            "trim_array(ia, s) = '{1}'",
            "coalesce(i, l) = 1",
            "i::int2 = 1",
            "n::float8 > 0",
            "t ilike 'A%'",
            "i is distinct from l",
            "nullif(i, 1) = 2",
            "case i when 1 then b when 2 then not b end",
            "greatest(i, l) > 1",
        ])
        .to_owned()
    }
}
