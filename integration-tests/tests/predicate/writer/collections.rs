//! Random arrays, ranges and JSON.

use rand::{RngExt, seq::IndexedRandom};

use super::{About, Writer};
use crate::columns::{COLUMNS, cast_type, words};
use crate::quoted;

/// Arrays, and what may be one of their elements.
const ELEMENTS: &[(&str, &str)] = &[
    ("ba", "b"),
    ("sa", "s"),
    ("la", "l"),
    ("la", "42"),
    ("na", "n"),
    ("na", "i"),
    ("ra", "r"),
    ("fa", "d"),
    ("ua", "u"),
    ("za", "tz"),
    ("sta", "ts"),
    ("ja", "j"),
    ("va", "t"),
    ("ca", "c"),
    ("ca", "'a  '"),
    ("tac", "t"),
    ("ta", "t collate \"C\""),
    ("ya", "y"),
    ("iva", "iv"),
    ("di", "i"),
];

impl Writer<'_> {
    /// One that is there, or one that is made of others.
    pub(super) fn array(&mut self) -> String {
        if self.random.random_ratio(1, 6) {
            return self.made_array();
        }
        self.plain_array()
    }

    /// Of arrays and elements whose types fit together now and then.
    fn made_array(&mut self) -> String {
        let (name, element) = ELEMENTS.choose(self.random).copied().unwrap_or_default();
        let number = self.pick(&["1", "s", "i", "l", "n", "r", "null", "'1'", "dl", "m", "'{1}'"]);
        let numbers = self.pick(&["ia", "sa", "la", "na", "fa", "di", "'{1,2}'", "null::int[]", "ia[2:3]"]);
        let word = self.pick(&["t", "v", "c", "'a'", "null", "ta[1]", "dc", "tc"]);
        let texts = self.pick(&["ta", "va", "'{a,b}'", "tac", "'{}'::text[]"]);
        let other = self.plain_array();
        match self.random.random_range(0..18) {
            15 => format!("array[{element}, {}]", self.pick(&["null", element])),
            16 => format!("array[{number}, {}, {}]", self.pick(&["i", "l", "0"]), self.pick(&["n", "s", "1"])),
            0 => format!("({name} || {element})"),
            1 => format!("({element} || {name})"),
            2 => format!("({name} || {other})"),
            3 => format!("({other} || {name} || {element})"),
            4 => format!("({numbers} || {number})"),
            5 => format!("({number} || {numbers} || {number})"),
            6 => format!("({texts} || {word})"),
            7 => format!("({word} || {texts})"),
            8 => format!("array_append({numbers}, {number})"),
            9 => format!("array_prepend({word}, {texts})"),
            10 => format!("array_cat({name}, {other})"),
            11 => format!("array_remove({name}, {element})"),
            12 => format!("array_replace({numbers}, {number}, {})", self.pick(&["0", "null", "l", "1.5"])),
            13 => format!("array_positions({texts}, {word})"),
            14 => format!("trim_array({name}, {})", self.pick(&["0", "1", "s", "-1"])),
            _ => format!(
                "string_to_array({}, {}{})",
                self.pick(&["t", "v", "c", "'a,b,,c'", "''", "tc", "null"]),
                self.pick(&["','", "'b'", "null", "''", "t", "' '"]),
                self.pick(&["", "", ", 'a'", ", ''", ", null"])
            ),
        }
    }

    /// An array, or a slice of one.
    fn plain_array(&mut self) -> String {
        if self.random.random_ratio(1, 5) {
            let array =
                self.pick(&["ia", "ta", "da", "('{1,2,NULL}'::int[])", "('[0:2][3:4]={{1,2},{3,4},{5,6}}'::int[])"]);
            let slices = [
                "[1:2]", "[:2]", "[2:]", "[:]", "[0:1]", "[s:2]", "[1:i]", "[2:1]", "[null:2]", "[1:1][:]", "[1][1:4]",
                "[:1][1]",
            ];
            return format!("{array}{}", self.pick(&slices));
        }
        self.pick(&[
            "ia",
            "ia",
            "ta",
            "ta",
            "da",
            "di",
            "ba",
            "sa",
            "la",
            "na",
            "ra",
            "fa",
            "ua",
            "za",
            "sta",
            "ja",
            "va",
            "ca",
            "tac",
            "ya",
            "iva",
            "'{1,42}'::bigint[]",
            "'{0.1,1.0}'::numeric[]",
            "'{t,f}'::bool[]",
            "array[true]",
            "array[0.1, 42]",
            "'{1,2}'",
            "'{a}'",
            "'{}'",
            "array[1,2]",
            "array['a', null]",
            "array[1.5, 2]::int[]",
            "'{2024-02-29}'::date[]",
            "null::int[]",
            "array[]::text[]",
            "'{\"a b\", NULL}'::text[]",
        ])
        .to_owned()
    }

    pub(super) fn of_array(&mut self, depth: usize) -> String {
        let (a, b) = (self.array(), self.array());
        let op = self.pick(&["=", "<>", "<", "<=", ">", ">=", "@>", "<@", "&&", "@>", "&&"]);
        let comparison = self.pick(&["=", "<>", "<", ">="]);
        let quantifier = self.pick(&["any", "all"]);
        match self.random.random_range(0..11) {
            9 => {
                let (name, element) = ELEMENTS.choose(self.random).copied().unwrap_or_default();
                format!("array_position({name}, {element}) {comparison} {}", self.pick(&["1", "2", "s", "null"]))
            }
            10 => format!("array_dims({a}) {comparison} {}", self.pick(&["'[1:2]'", "'[1:2][1:2]'", "t"])),
            0 | 1 => format!("{a} {op} {b}"),
            2 => {
                // Of one type.
                let (name, kind, pool) = COLUMNS[self.among(&[
                    "ia", "ta", "da", "di", "ba", "sa", "la", "na", "ra", "fa", "ua", "za", "sta", "ja", "va", "ca",
                    "tac", "ya", "iva",
                ])];
                let constant = words(pool).choose(self.random).map(|word| quoted(word)).unwrap_or_default();
                let kind =
                    if self.random.random_ratio(1, 2) { String::new() } else { format!("::{}", cast_type(kind)) };
                format!("{name} {op} {constant}{kind}")
            }
            7 | 8 => {
                let (name, element) = ELEMENTS.choose(self.random).copied().unwrap_or_default();
                let place = self.pick(&["1", "2", "s"]);
                match self.random.random_range(0..3) {
                    0 => format!("{name}[{place}] {comparison} {element}"),
                    _ => format!("{element} {comparison} {quantifier} ({name})"),
                }
            }
            3 => {
                let (name, element) = [("ia", self.number(depth)), ("ta", self.text(depth)), ("da", "dt".to_owned())]
                    .choose(self.random)
                    .cloned()
                    .unwrap_or_default();
                format!("{element} {comparison} {quantifier} ({name})")
            }
            4 => format!("ia[{}] {comparison} {}", self.pick(&["1", "0", "2", "-1", "s", "1][2"]), self.number(0)),
            5 => format!("ta[{}] {comparison} {}", self.pick(&["1", "2", "s"]), self.text(depth)),
            _ => {
                let function = self.pick(&["array_length", "array_upper", "array_lower"]);
                format!(
                    "{function}({a}, {}) {comparison} {}",
                    self.pick(&["1", "2", "0"]),
                    self.pick(&["1", "2", "null"])
                )
            }
        }
    }

    pub(super) fn of_range(&mut self, depth: usize) -> String {
        let ranges = [
            "ir",
            "nr",
            "dr",
            "sr",
            "lr",
            "zr",
            "dn",
            "'[1,4294967296)'::int8range",
            "'[2000-01-01 00:00:00+02,)'::tstzrange",
            "'[1,3]'::int4range",
            "'(0.1,)'::numrange",
            "'[2000-01-01,2024-02-29)'",
            "'empty'",
            "'[1,42)'",
            "tsrange '(2000-01-01 00:00,]'",
        ];
        let (a, b) = (self.pick(&ranges), self.pick(&ranges));
        let element =
            self.pick(&["i", "n", "dt", "ts", "l", "l", "tz", "42", "1.0", "s", "null", "'2024-02-29'::date"]);
        let comparison = self.pick(&["=", "<>", "<", "<=", ">", ">="]);
        match self.random.random_range(0..6) {
            0 | 1 => {
                format!(
                    "{a} {} {b}",
                    self.pick(&["@>", "<@", "&&", "<<", ">>", "&<", "&>", "-|-", "=", "<", ">=", "is distinct from"])
                )
            }
            2 => format!("{a} @> {element}"),
            3 => format!("{element} <@ {a}"),
            4 => format!("{}({a}) {comparison} {}", self.pick(&["lower", "upper"]), self.value(About::Number, depth)),
            _ => format!("{}({a})", self.pick(&["isempty", "lower_inc", "upper_inc", "lower_inf", "upper_inf"])),
        }
    }

    pub(super) fn json(&mut self, depth: usize) -> String {
        if depth == 0 || self.random.random_ratio(1, 3) {
            return self
                .pick(&["j", "j", "j", "'{\"a\": 1}'::jsonb", "'[1, \"a\"]'::jsonb", "js::jsonb", "'1'::jsonb"])
                .to_owned();
        }
        let json = self.json(depth - 1);
        match self.random.random_range(0..6) {
            4 => {
                format!("({json} - {})", self.pick(&["'a'", "'b'", "0", "-1", "t", "s", "'{a,b}'::text[]", "ta", "5"]))
            }
            5 => format!(
                "({json} || {})",
                self.pick(&["j", "'{\"a\": 2, \"z\": null}'", "'[]'", "'1'", "js::jsonb", "null", "'{}'", "'[\"a\"]'"])
            ),
            3 => format!(
                "({json}){}",
                self.pick(&["['a']", "['b']['a']", "[0]", "[-1]", "['1']", "['a'][1]", "['b'][null]"])
            ),
            0 => format!("({json} -> {})", self.pick(&["'a'", "'b'", "'c'", "t"])),
            1 => format!("({json} -> {})", self.pick(&["0", "1", "-1", "2", "s"])),
            _ => format!(
                "({json} #> {})",
                self.pick(&["'{a}'", "'{b,a,-1}'", "'{}'", "'{1,NULL}'", "ta", "'{2,0}'", "'{a, 0}'"])
            ),
        }
    }

    pub(super) fn json_text(&mut self, depth: usize) -> String {
        match self.random.random_range(0..7) {
            4 => format!(
                "(js #>> {})",
                self.pick(&[
                    "'{a}'",
                    "'{b,a,0}'",
                    "'{}'",
                    "ta",
                    "'{2,a}'",
                    "'{a,1}'",
                    "'{-1}'",
                    "'{ 1}'",
                    "'{a,NULL}'",
                    "'{a,-1}'",
                    "'{b,a,-1}'",
                    "'{1,-1}'",
                    "'{-2,-1}'"
                ])
            ),
            5 => format!(
                "{} ->> {}",
                self.pick(&[
                    "(js #> '{b}')",
                    "(js #> '{}')",
                    "json_extract_path(js, 'b')",
                    "jsonb_extract_path(j, 'b', t)"
                ]),
                self.pick(&["'a'", "0", "'b'"])
            ),
            6 => self
                .pick(&[
                    "jsonb_extract_path_text(j, 'a')",
                    "jsonb_extract_path_text(j, 'b', 'a', '2', 'c')",
                    "json_extract_path_text(js, 'b', 'a', '1')",
                    "json_extract_path_text(js, t)",
                    "json_typeof(js)",
                    "json_typeof(js -> 'a')",
                ])
                .to_owned(),
            0 => format!("({} ->> {})", self.json(depth), self.pick(&["'a'", "'b'", "'bb'", "0", "-1", "1", "3"])),
            1 => format!("({} #>> {})", self.json(depth), self.pick(&["'{a}'", "'{b,a}'", "'{}'", "ta", "'{a,1}'"])),
            2 => format!(
                "(js{} ->> {})",
                self.pick(&["", " -> 'b'", " -> 2"]),
                self.pick(&["'a'", "'b'", "0", "-1", "2"])
            ),
            _ => format!("jsonb_typeof({})", self.json(depth)),
        }
    }

    pub(super) fn of_json(&mut self, depth: usize) -> String {
        let json = self.json(depth);
        let part = self.pick(&[
            "'{}'",
            "'[]'",
            "'1'",
            "'\"a\"'",
            "'{\"a\": 1}'",
            "'[1]'",
            "'[[2]]'",
            "'{\"b\": {\"a\": [2]}}'",
            "j",
            "'{\"a\": [\"a\"]}'",
            "'null'",
        ]);
        match self.random.random_range(0..8) {
            0 | 1 => format!("{json} {} {part}", self.pick(&["@>", "<@", "=", "<>", "is distinct from"])),
            2 => format!("{json} ? {}", self.pick(&["'a'", "'b'", "'x'", "t"])),
            3 => format!(
                "{json} {} {}",
                self.pick(&["?|", "?&"]),
                self.pick(&["array['a','b']", "ta", "'{}'", "'{a,NULL}'"])
            ),
            4 => format!(
                "({})::{} {} {}",
                self.json_text(depth),
                self.pick(&["int", "numeric", "float8", "bigint"]),
                self.pick(&["=", ">", "<="]),
                self.number(0)
            ),
            5 => format!("({})::bool", self.json_text(depth)),
            6 => format!("jsonb_array_length({json}) > {}", self.pick(&["0", "1", "2"])),
            _ => format!("{} {} {}", self.json_text(depth), self.pick(&["=", "<>", "<", "like"]), self.text(0)),
        }
    }
}
