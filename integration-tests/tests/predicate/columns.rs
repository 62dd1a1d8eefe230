//! The columns of the test's tables, with awkward values.

/// What the tables need first. The collations and domains are what users make of them.
pub(crate) const TYPES: &str = "
    create type public.mood as enum ('sad', 'ok', 'so happy');
    create collation public.plain (locale = 'C');
    create collation public.loose (provider = icu, locale = 'und-u-ks-level1', deterministic = false);
    create domain public.code as text check (value <> 'never');
    create domain public.exact_code as public.code collate \"C\";
    create domain public.amount as numeric(10,2) check (value > -1000000);
    create domain public.number as bigint;
    create domain public.feeling as public.mood;
    create domain public.numbers as integer[];
    create domain public.spell as int8range";

/// By name and type, which a collation may follow; values as SQL.
pub(crate) const COLUMNS: &[(&str, &str, &str)] = &[
    ("b", "boolean", "true false"),
    ("s", "smallint", "0 1 -1 7 32767 -32768"),
    ("i", "integer", "0 1 -1 42 2147483647 -2147483648"),
    ("l", "bigint", "0 1 -1 42 4294967295 9223372036854775807 -9223372036854775808"),
    (
        "n",
        "numeric",
        "0 0.00 1 1.0 -1.5 0.1 42 NaN Infinity -Infinity 123456789012345678901234567890.000000001 1e-30 9999.9999",
    ),
    ("m", "numeric(10,2)", "0 0.10 -7.25 42 99999999.99 NaN"),
    ("r", "real", "0 -0 1.5 0.1 NaN Infinity -Infinity 3.4e38 1e-45 42"),
    ("d", "double precision", "0 -0 1.5 0.1 NaN Infinity -Infinity 1.7e308 5e-324 42 0.30000000000000004"),
    ("t", "text", TEXTS),
    ("v", "varchar(10)", "'' a 'a ' ab aBc é 42"),
    ("c", "char(5)", "'' a ab 'a b' é abcde"),
    ("tc", "text collate \"C\"", TEXTS),
    ("tp", "text collate public.plain", TEXTS),
    ("tu", "text collate ucs_basic", TEXTS),
    ("ti", "text collate \"en-x-icu\"", TEXTS),
    ("tn", "text collate public.loose", TEXTS),
    ("vn", "varchar(10) collate public.loose", "'' a 'a ' ab aBc é 42"),
    ("cc", "char(3) collate \"C\"", "'' a ab 'a b' é B"),
    ("dc", "public.code", TEXTS),
    ("dx", "public.exact_code", TEXTS),
    ("dm", "public.amount", "0 0.10 -7.25 42 99999999.99"),
    ("dl", "public.number", "0 1 -1 42 9223372036854775807"),
    ("u", "uuid", "00000000-0000-0000-0000-000000000000 123e4567-e89b-12d3-a456-426614174000"),
    ("dt", "date", "2024-02-29 2000-01-01 '0044-03-15 BC' infinity -infinity 5874897-12-31 '4714-11-24 BC'"),
    ("ts", "timestamp", "'2024-02-29 12:34:56.789' '2000-01-01 00:00:00' '0044-03-15 01:00:00 BC' infinity -infinity"),
    (
        "tz",
        "timestamptz",
        "'2024-02-29 12:34:56.789+00' '2000-01-01 00:00:00+02' '0044-03-15 01:00:00+00 BC' infinity '12024-01-01 00:00:00+00'",
    ),
    ("tm", "time", "00:00:00 12:34:56.000001 24:00:00 23:59:59"),
    ("y", "bytea", "'' '\\x00' '\\x00ff' '\\xff' '\\x616263'"),
    ("e", "public.mood", "sad ok 'so happy'"),
    ("de", "public.feeling", "sad ok 'so happy'"),
    ("o", "oid", "0 1 42 4294967295"),
    ("ia", "integer[]", "{} {1} {1,2,3} {3,2,1,1} {1,NULL} [0:1]={1,2} {{1,2},{3,42}} {-1,2147483647}"),
    ("ta", "text[]", "{} {a} '{a,ab,\"\"}' {NULL,é} '{\"a b\",\"NULL\"}' {42,1} {A}"),
    ("da", "date[]", "{} {2024-02-29} {2000-01-01,infinity,NULL}"),
    ("di", "public.numbers", "{} {1} {1,2,3} {1,NULL} {{1,2},{3,42}}"),
    ("ba", "boolean[]", "{} {t} {f,t,NULL} {t,t}"),
    ("sa", "smallint[]", "{} {1} {0,-32768,32767} {1,NULL}"),
    ("la", "bigint[]", "{} {1} {42,9223372036854775807} {-1,NULL,0}"),
    ("na", "numeric[]", "{} {1} {1.0} {0.1,NaN,NULL} {42.00,Infinity} {{1,2},{3,4.50}}"),
    ("ra", "real[]", "{} {1} {0.1,-0,NaN} {NULL,Infinity}"),
    ("fa", "double precision[]", "{} {1} {0.1,-0,NaN} {NULL,-Infinity,5e-324}"),
    ("ua", "uuid[]", "{} {123e4567-e89b-12d3-a456-426614174000} {00000000-0000-0000-0000-000000000000,NULL}"),
    ("za", "timestamptz[]", "{} '{\"2024-02-29 12:34:56.789+00\"}' '{infinity,\"2000-01-01 00:00:00+02\",NULL}'"),
    ("sta", "timestamp[]", "{} '{\"2024-02-29 12:34:56.789\"}' '{-infinity,NULL}'"),
    ("ja", "jsonb[]", "{} '{1,\"\\\"a\\\"\",NULL}' '{\"{\\\"a\\\":1}\",\"[]\"}' {null,1.0}"),
    ("va", "varchar(5)[]", "{} {a} '{a ,ab}' {NULL,é}"),
    ("ca", "char(3)[]", "{} {a} {ab,\"\"} {NULL,é}"),
    ("tac", "text[] collate \"C\"", "{} {a} {B,a} {NULL,é}"),
    ("ya", "bytea[]", "{} '{\"\\\\\\\\x00\",\"\\\\\\\\xff\"}' {NULL}"),
    ("iva", "interval[]", "{} '{\"1 day\",\"24:00:00\"}' '{\"1 mon\",NULL}'"),
    (
        "j",
        "jsonb",
        "{} [] null 1 '\"a\"' '{\"a\":1,\"b\":{\"a\":[1,2,{\"c\":null}]}}' '{\"a\":1.0,\"bb\":\"x\"}' '[1,\"a\",[2],{\"a\":\"é\"}]' '{\"a\":\"42\",\"b\":true}' '[1.50,1e2,\"a\\n\\u0001\",null]' '{\"a\":[1,\"ab\",\"a\"],\"c\":0.1}'",
    ),
    (
        "js",
        "json",
        "{} [] null '{\"a\": 1,  \"a\" :\"é\\u00e9\"}' '{\"b\": {\"a\":[1, 2 ]}, \"a\":null}' '[1, \"a\", {\"a\":1.0}]' '\"a\"' '{\"a\": \"\\u0000\", \"b\": 1}' '{\"a\":[1,2,3], \"b\":{\"a\":[1]}}' '[[1,2,3], [7], {\"a\":[2]}]' '  1 ' ' true'",
    ),
    ("ir", "int4range", "empty [1,10) (,5] [42,) (,) [1,1] (-2147483648,0)"),
    ("lr", "int8range", "empty [1,10) (,5] [42,) (,) [1,1] (-9223372036854775808,0) [1,4294967296]"),
    ("nr", "numrange", "empty [1,1.50] (1,2) (,0.1] [NaN,) (-Infinity,Infinity)"),
    ("dr", "daterange", "empty [2024-02-29,2024-03-01] (,2000-01-01) [2000-01-01,infinity) [-infinity,infinity]"),
    ("sr", "tsrange", "empty '[\"2024-02-29 12:34:56.789\",infinity]' '(,2000-01-01)' '[2000-01-01,2000-01-01]'"),
    (
        "zr",
        "tstzrange",
        "empty '[\"2024-02-29 12:34:56.789+00\",infinity]' '(,\"2000-01-01 00:00:00+02\")' '[\"2000-01-01 00:00:00+00\",\"2024-02-29 00:00:00+00\")'",
    ),
    ("dn", "public.spell", "empty [1,10) [42,) (,)"),
    (
        "iv",
        "interval",
        "'1 day' '24 hours' '1 mon' '30 days' '-1 mon -2 days' '1 year 2 mons -3 days 04:05:06.7' '00:00:00' '-00:00:00.000001' '100 years'",
    ),
];

const TEXTS: &str = "'' a A ab abc 'a ' 'a%c' 'a_c' é Éa 日本 'a\\c' 'O''x' 42 B Z";

/// Those that are numbers.
pub(crate) const NUMBERS: &[&str] = &["s", "i", "l", "n", "m", "r", "d", "s", "i", "l", "n", "m", "r", "d", "dm", "dl"];

/// Those that are text.
pub(crate) const WORDS: &[&str] =
    &["t", "v", "c", "t", "v", "c", "t", "v", "c", "tc", "tp", "tu", "ti", "tn", "vn", "cc", "dc", "dx"];

/// Of a column's values, what constants are cast to: conditions do not name domains.
pub(crate) fn cast_type(declared: &str) -> &str {
    match declared.split_once(" collate ").map_or(declared, |(kind, _)| kind) {
        "public.code" | "public.exact_code" => "text",
        "public.amount" => "numeric",
        "public.number" => "bigint",
        "public.feeling" => "public.mood",
        "public.numbers" => "integer[]",
        "public.spell" => "int8range",
        kind => kind,
    }
}

/// A definition of each.
pub(crate) fn definitions() -> String {
    let definitions: Vec<String> = COLUMNS.iter().map(|(name, kind, _)| format!("{name} {kind}")).collect();
    definitions.join(", ")
}

/// The words of a list, some in quotes.
pub(crate) fn words(text: &str) -> Vec<String> {
    let (mut found, mut word, mut quoted, mut started) = (Vec::new(), String::new(), false, false);
    let mut chars = text.chars().peekable();
    while let Some(char) = chars.next() {
        match char {
            '\'' if quoted && chars.peek() == Some(&'\'') => {
                chars.next();
                word.push('\'');
            }
            '\'' => (quoted, started) = (!quoted, true),
            ' ' if !quoted => {
                found.push(std::mem::take(&mut word));
                started = false;
            }
            _ => {
                word.push(char);
                started = true;
            }
        }
    }
    if started {
        found.push(word);
    }
    found
}
