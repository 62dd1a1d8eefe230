//! Random conditions on the columns of the test's table.

use rand::{RngExt, rngs::StdRng, seq::IndexedRandom};

mod collections;
mod moments;
mod patterns;

use crate::columns::{COLUMNS, NUMBERS, WORDS, cast_type, words};
use crate::quoted;

/// What a random expression is about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum About {
    Number,
    Text,
    /// One of the other columns, by index.
    Column(usize),
}

/// Tables that subqueries read, and what their columns are called with.
const TABLES: &[(&str, &str)] = &[
    ("few", "few"),
    ("public.few", "few"),
    ("nothing", "nothing"),
    ("\"More Rows\"", "\"More Rows\""),
    ("public.\"More Rows\" as few", "few"),
    ("rows", "rows"),
    ("rows other", "other"),
];

pub(crate) struct Writer<'r> {
    random: &'r mut StdRng,
    /// What the table is called whose condition is written.
    table: &'static str,
    /// How many subqueries there are around this place.
    queries: usize,
}

impl<'r> Writer<'r> {
    pub(crate) fn new(random: &'r mut StdRng) -> Self {
        Writer { random, table: "rows", queries: 0 }
    }

    fn pick<'p>(&mut self, choices: &[&'p str]) -> &'p str {
        choices.choose(self.random).copied().unwrap_or_default()
    }

    fn column_among(&mut self, names: &[&str]) -> String {
        let name = self.pick(names).to_owned();
        match self.random.random_range(0..6) {
            0 => format!("{}.{name}", self.table),
            1 => format!("\"{name}\""),
            _ => name,
        }
    }

    fn about(&mut self) -> About {
        match self.random.random_range(0..5) {
            0 | 1 => About::Number,
            2 => About::Text,
            _ => loop {
                let index = self.random.random_range(0..COLUMNS.len());
                let name = COLUMNS[index].0;
                if !NUMBERS.contains(&name) && !WORDS.contains(&name) && name != "js" {
                    return About::Column(index);
                }
            },
        }
    }

    fn value(&mut self, about: About, depth: usize) -> String {
        if depth > 0 && self.random.random_ratio(1, 6) {
            let (a, b) = (self.value(about, depth - 1), self.value(about, depth - 1));
            return match self.random.random_range(0..5) {
                0 => format!("case when {} then {a} else {b} end", self.condition(depth - 1)),
                1 => format!("coalesce({a}, {b})"),
                2 => format!("nullif({a}, {b})"),
                3 => format!("greatest({a}, {b})"),
                _ => format!("least({a}, {b}, {a})"),
            };
        }
        match about {
            About::Number => self.number(depth),
            About::Text => self.text(depth),
            About::Column(index) => {
                let (name, _, pool) = COLUMNS[index];
                if self.random.random_ratio(1, 2) {
                    return self.column_among(&[name]);
                }
                words(pool).choose(self.random).map(|word| quoted(word)).unwrap_or_default()
            }
        }
    }

    fn number_function(&mut self, depth: usize) -> String {
        let (a, b) = (self.number(depth), self.number(depth));
        match self.random.random_range(0..14) {
            12 => format!("div({a}, {b})"),
            13 => format!("gcd({}, {})", self.pick(&["i", "l", "42", "s"]), self.pick(&["i", "l", "6", "0"])),
            0 => format!("{}({})", self.pick(&["length", "char_length", "octet_length", "ascii"]), self.text(depth)),
            1 => format!("strpos({}, {})", self.text(depth), self.text(0)),
            2 => format!("position({} in {})", self.text(0), self.text(0)),
            3..=5 => format!("{}({a})", self.pick(&["abs", "ceil", "floor", "round", "trunc", "sign"])),
            6 => format!("{}({a}, {})", self.pick(&["round", "trunc"]), self.pick(&["1", "0", "-1", "3"])),
            7 => format!("mod({a}, {b})"),
            8 => format!("cardinality({})", self.array()),
            9 => format!("(~{})", self.pick(&["i", "s", "l", "1"])),
            _ => format!(
                "({} {} {})",
                self.pick(&["i", "s", "l", "42"]),
                self.pick(&["&", "|", "#", "<<", ">>"]),
                self.pick(&["i", "s", "3", "33", "l", "-1"])
            ),
        }
    }

    fn text_function(&mut self, depth: usize) -> String {
        let (a, b) = (self.text(depth), self.text(0));
        let place = self.pick(&["0", "1", "2", "-1", "3", "i"]);
        match self.random.random_range(0..14) {
            12 => {
                format!("{}({a}, {place}{})", self.pick(&["lpad", "rpad"]), self.pick(&["", ", 'xy'", ", t", ", ''"]))
            }
            13 => format!("repeat({a}, {})", self.pick(&["0", "2", "-1", "3"])),
            0 => format!(
                "{}({a})",
                self.pick(&["lower", "upper", "reverse", "md5", "btrim", "ltrim", "rtrim", "initcap"])
            ),
            1 => format!("trim({} {b} from {a})", self.pick(&["both", "leading", "trailing", ""])),
            2 => format!("substring({a} from {place}{})", self.pick(&["", " for 1", " for 2", " for 0"])),
            3 => format!("substr({a}, {place}, {})", self.pick(&["0", "1", "2147483647", "s"])),
            4 | 5 => format!("{}({a}, {place})", self.pick(&["left", "right"])),
            6 => format!("replace({a}, {b}, {})", self.text(0)),
            7 => format!("translate({a}, {b}, {})", self.pick(&["'xy'", "''", "'é'"])),
            8 => format!("split_part({a}, {b}, {place})"),
            9 => self.json_text(1),
            10 => self.pick(&["E'a\\u00e9'", "$$a'b$$", "E'\\x41\\\\'", "$q$a$$b$q$"]).to_owned(),
            _ => format!("trim({a})"),
        }
    }

    fn number(&mut self, depth: usize) -> String {
        if depth > 0 && self.random.random_ratio(1, 4) {
            return self.number_function(depth - 1);
        }
        let choice = self.random.random_range(0..if depth > 0 { 9 } else { 5 });
        match choice {
            0 | 1 => self.column_among(NUMBERS),
            2 => self.pick(&["0", "1", "-1", "42", "2147483648", "-2147483648", "9223372036854775808"]).to_owned(),
            3 => self.pick(&["0.1", "1.50", "1e3", "-0.0", "0.30000000000000004", "1e-30"]).to_owned(),
            4 => self.pick(&["'42'", "'1'", "null", "'NaN'::numeric", "'-0'::float8", "'Infinity'::real"]).to_owned(),
            5..=7 => {
                let op = self.pick(&["+", "-", "*", "/", "%"]);
                let open = self.random.random_ratio(1, 2);
                let (a, b) = (self.number(depth - 1), self.number(depth - 1));
                if open { format!("({a} {op} {b})") } else { format!("{a} {op} {b}") }
            }
            _ => {
                let kind = self.pick(&["int2", "int", "bigint", "numeric", "real", "float8", "numeric(6,1)"]);
                let operand = self.number(depth - 1);
                match self.random.random_range(0..3) {
                    0 => format!("-({operand})"),
                    1 => format!("cast({operand} as {kind})"),
                    _ => format!("({operand})::{kind}"),
                }
            }
        }
    }

    /// The place of one of these columns.
    fn among(&mut self, names: &[&str]) -> usize {
        let name = self.pick(names);
        COLUMNS.iter().position(|column| column.0 == name).unwrap_or_default()
    }

    /// With a collation, perhaps.
    fn text(&mut self, depth: usize) -> String {
        let text = self.text_alone(depth);
        match self.random.random_range(0..24) {
            0 | 1 => format!("({text}) collate \"C\""),
            2 => format!("({text}) collate {}", self.pick(&["pg_catalog.\"C\"", "\"POSIX\"", "\"C\""])),
            _ => text,
        }
    }

    fn bytes(&mut self, depth: usize) -> String {
        if depth > 0 && self.random.random_ratio(1, 3) {
            return format!("({} || {})", self.bytes(depth - 1), self.bytes(depth - 1));
        }
        self.pick(&["y", "y", "ya[1]", "'\\x00ff'", "'\\x61'::bytea", "null"]).to_owned()
    }

    fn text_alone(&mut self, depth: usize) -> String {
        if depth > 0 && self.random.random_ratio(1, 3) {
            return self.text_function(depth - 1);
        }
        match self.random.random_range(0..if depth > 0 { 7 } else { 4 }) {
            0..=1 => self.column_among(WORDS),
            2..=3 => {
                self.pick(&["''", "'a'", "'a '", "'ab'", "'é'", "'A'", "'42'", "'O''x'", "'a\\c'", "null"]).to_owned()
            }
            4 => {
                let other = self.pick(&["i", "l", "n", "b", "u", "e", "j", "js", "dl", "42", "m"]);
                match self.random.random_range(0..4) {
                    0 => format!("{} || {other}", self.text(depth - 1)),
                    1 => format!("{other} || {}", self.text(depth - 1)),
                    _ => format!("{} || {}", self.text(depth - 1), self.text(depth - 1)),
                }
            }
            5 => {
                let kind = self.pick(&["text", "varchar", "char(3)", "varchar(1)", "bpchar"]);
                format!("({})::{kind}", self.text(depth - 1))
            }
            _ => {
                let column = self.column_among(&["s", "i", "l", "n", "b", "u"]);
                format!("{column}::text")
            }
        }
    }

    pub(crate) fn condition(&mut self, depth: usize) -> String {
        let below = depth.saturating_sub(1);
        if depth > 0 && self.random.random_ratio(1, 3) {
            let (a, b) = (self.condition(below), self.condition(below));
            let word = self.pick(&["and", "or"]);
            return match self.random.random_range(0..4) {
                0 => format!("not {a}"),
                1 => format!("({a}) {word} {b}"),
                2 => format!("{a} {word} ({b})"),
                _ => format!(
                    "({a}) is {}",
                    self.pick(&[
                        "true",
                        "not false",
                        "unknown",
                        "not null",
                        "not true",
                        "false",
                        "not unknown",
                        "null"
                    ])
                ),
            };
        }
        let about = self.about();
        let not = self.pick(&["", "not "]);
        let op = self.pick(&["=", "<>", "<", "<=", ">", ">=", "!="]);
        let a = self.value(about, below);
        let (b, c) = (self.value(about, below), self.value(about, below));
        match self.random.random_range(0..23) {
            21 => format!("{} {op} {}", self.bytes(below + 1), self.bytes(below)),
            17 | 18 => self.of_range(below),
            19 | 20 if self.queries < 3 => self.of_subquery(about, (&a, not)),
            15 => {
                let (x, y, z) = (self.value(about, 0), self.number(0), self.number(0));
                let row = self.pick(&["", "row "]);
                format!("{row}({a}, {y}, tz) {op} ({x}, {z}, tz)")
            }
            22 => {
                let (x, y) = (self.number(0), self.text(0));
                format!(
                    "({a}, {x}, {y}) is {not}{}",
                    self.pick(&["null", "distinct from (b, i, t)", "distinct from (tz, 1, 'a')"])
                )
            }
            16 => {
                let (x, y) = (self.number(0), self.text(0));
                format!("({a}, {x}) {not}in (({b}, {x}), ({c}, 1), (null, 42)) or ({y}, {x}) < (t, i)")
            }
            9 | 10 => self.of_array(below),
            11 | 12 => self.of_json(below),
            13 | 14 => self.of_moment(below),
            0..=2 => format!("{a} {op} {b}"),
            3 => format!("{a} is {not}distinct from {b}"),
            4 => format!("{a} {not}in ({b}, {c}, {})", self.value(about, 0)),
            5 => format!("{a} {not}between {}({b}) and {c}", self.pick(&["", "symmetric "])),
            6 => format!("{a} is {not}null"),
            7 => self.pattern(not),
            _ => {
                let value = |writer: &mut Self| match writer.random.random_ratio(1, 4) {
                    true => writer.value(about, 0),
                    false => writer.constant(about),
                };
                let list: Vec<String> = (0..3).map(|_| value(self)).collect();
                format!("{a} {op} {}(array[{}])", self.pick(&["any", "all"]), list.join(", "))
            }
        }
    }

    fn of_subquery(&mut self, about: About, (operand, not): (&str, &str)) -> String {
        let (from, table) = *TABLES.choose(self.random).unwrap_or(&TABLES[0]);
        let around = std::mem::replace(&mut self.table, table);
        self.queries += 1;
        let column = match about {
            About::Number => self.column_among(NUMBERS),
            About::Text => self.column_among(WORDS),
            About::Column(index) => self.column_among(&[COLUMNS[index].0]),
        };
        let condition = match self.random.random_range(0..5) {
            0 => String::new(),
            1 => format!(" where {column} is not null"),
            2 => format!(" where {column} is null or {}", self.comparison()),
            3 => format!(" where {}", self.comparison()),
            _ => format!(" where {}", self.condition(1)),
        };
        self.queries -= 1;
        self.table = around;
        let select = format!("select {column} from {from}{condition}");
        match self.random.random_range(0..6) {
            0 => format!("{operand} = {} ({select})", self.pick(&["any", "some"])),
            1 => format!("{operand} <> all ({select})"),
            _ => format!("{operand} {not}in ({select})"),
        }
    }

    /// One that does not fail.
    fn comparison(&mut self) -> String {
        let (column, op) = (self.column_among(&["i", "s", "l", "n"]), self.pick(&["=", "<>", "<", ">="]));
        format!("{column} {op} {}", self.pick(&["0", "1", "42", "-1", "0.1"]))
    }

    fn constant(&mut self, about: About) -> String {
        match about {
            About::Number => self.pick(&["0", "1", "42", "1.5", "0.1", "-1", "null", "2147483648"]).to_owned(),
            About::Text => self.pick(&["'a'", "'ab'::text", "'é'", "null", "'a '::char(3)"]).to_owned(),
            About::Column(index) => {
                let (_, kind, pool) = COLUMNS[index];
                let word = words(pool).choose(self.random).map(|word| quoted(word)).unwrap_or_default();
                format!("{word}::{}", cast_type(kind))
            }
        }
    }
}
