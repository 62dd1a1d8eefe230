//! Every built-in type that a column can have, kinds of user-defined ones, and the usual extensions' types, each with the values
//! that are easy to get wrong.
//!
//! Values are as a user writes them; PostgreSQL's output decides what is encoded.

use anyhow::{Context, Result};
use tokio_postgres::{Client, SimpleQueryMessage, error::SqlState};

use crate::Database;

/// User-defined types of each kind, in schema public.
const DEFINITIONS: &str = r#"
    create type public.mood as enum ('ok', 'so so', 'it''s "quoted", {so}', 'NULL', '');
    create type public."od""d, [ty'pe]" as enum ('x');
    create domain public.price as numeric(12,2) check (value >= 0);
    create domain public.instant as timestamptz;
    create domain public.ints as int[];
    create domain public.prices as public.price[];
    create type public.pair as (a int, b text);
    create type public.nested as (n public.pair, m public.mood[], r int4range, v text[], t timestamptz);
    create type public.textrange as range (subtype = text, collation = "C");
    create type public.floatrange as range (subtype = float8);
    create type public.pairrange as range (subtype = public.pair);"#;

/// Types that every server has.
const VALUES: &[(&str, &[&str])] = &[
    ("boolean", &["true", "false"]),
    ("smallint", &["-32768", "32767", "0"]),
    ("integer", &["-2147483648", "2147483647", "0"]),
    ("bigint", &["-9223372036854775808", "9223372036854775807", "0"]),
    ("oid", &["0", "2147483648", "4294967295"]),
    (
        "real",
        &["-0", "NaN", "Infinity", "-Infinity", "1e-45", "1.17549421e-38", "3.4028235e38", "0.1", "1e6", "999999"],
    ),
    ("double precision", &["-0", "0", "NaN", "Infinity", "-Infinity", "4.9e-324", "2.2250738585072011e-308"]),
    ("double precision", &["1.7976931348623157e308", "0.1", "1e15", "999999999999999.9", "1e-5", "123456789012345678"]),
    ("numeric", &["NaN", "Infinity", "-Infinity", "0", "-0.00", "1.0", "1.00", "1e-300", "1e400", "-1e131071"]),
    ("numeric(10,2)", &["12.345", "-0.001"]),
    ("money", &["-92233720368547758.08", "0.1", "1234567.89"]),
    ("text", &["", " ", "NULL", "a\tb\nc\r\\N\\x", "ünïcödé \u{1F30A} \u{FEFF}", "it's", "\u{1}\u{7f}"]),
    ("character varying(5)", &["", "ab   "]),
    ("character(5)", &["", "ab", " a"]),
    ("\"char\"", &["", "a", "\u{1}", "\\", " "]),
    ("name", &["", "A b", "größe"]),
    ("bytea", &["\\x", "\\x00ff5c27", "a\\\\b\\000"]),
    ("uuid", &["00000000-0000-0000-0000-000000000000", "FFFFFFFF-ffff-ffff-ffff-ffffffffffff"]),
    (
        "json",
        &["{\"a\":1, \"a\" : 123456789012345678901234567890.000, \"u\":\"\\u0000\\\\\"}", "null", "\"\"", " [1e400 ]"],
    ),
    ("jsonb", &["{\"a\":1,\"a\":123456789012345678901234567890.000,\"\":null}", "null", "\"it's \\\"\"", "1e400"]),
    ("jsonpath", &["$.\"a b\"[*] ? (@ > 1)", "strict $"]),
    (
        "date",
        &["infinity", "-infinity", "4714-11-24 BC", "0001-01-01 BC", "0001-01-01", "5874897-12-31", "10000-01-01"],
    ),
    ("time", &["24:00", "00:00", "23:59:59.999999"]),
    ("time with time zone", &["24:00:00+15:59:59", "00:00:00-15:59", "12:34:56.7+00"]),
    (
        "timestamp",
        &["infinity", "-infinity", "4714-11-24 00:00:00 BC", "294276-12-31 23:59:59.999999", "1999-12-31 24:00"],
    ),
    (
        "timestamp with time zone",
        &["infinity", "-infinity", "4714-11-24 00:00:00+00 BC", "0001-12-31 23:59:59.999999+00 BC"],
    ),
    (
        "timestamp with time zone",
        &["0001-01-01 00:00:00+00", "1969-12-31 23:59:59.999999+00", "2024-02-29 23:59:60+00"],
    ),
    (
        "timestamp with time zone",
        &["9999-12-31 23:59:59.999999+00", "10000-01-01 00:00+00", "294276-12-31 23:59:59.999999+00"],
    ),
    ("timestamp(0) with time zone", &["1900-01-01 12:34:56.5+05:30", "2000-03-01 00:00+00", "1600-02-29 00:00+00"]),
    ("interval", &["0", "-178000000 years", "1 mon -1 day +00:00:00.000001", "-1 year -2 mons +3 days -04:05:06.7"]),
    ("interval hour to minute", &["99999:59"]),
    ("bit(9)", &["101010101", "000000000"]),
    ("bit varying", &["", "1", "0001"]),
    ("inet", &["10.1.2.3/8", "::1", "::ffff:1.2.3.4/128", "0.0.0.0/0"]),
    ("cidr", &["10.0.0.0/8", "::/0"]),
    ("macaddr", &["08:00:2b:01:02:03"]),
    ("macaddr8", &["08:00:2b:ff:fe:01:02:03"]),
    ("point", &["(-0,NaN)", "(1e-300,Infinity)"]),
    ("line", &["{1,-1,0.1}"]),
    ("lseg", &["[(0,0),(1,1.5)]"]),
    ("box", &["(3,4),(1,2)"]),
    ("path", &["[(0,0),(1,1)]", "((0,0),(1,1))"]),
    ("polygon", &["((0,0),(1,1),(1,0))"]),
    ("circle", &["<(1,2),0.1>"]),
    ("tsvector", &["", "'a b':1A,2 'it''s' '\\\\':3"]),
    ("tsquery", &["", "'it''s' & !( 'a':*AB <2> b )"]),
    ("xid", &["4294967295"]),
    ("xid8", &["18446744073709551615"]),
    ("cid", &["4294967295"]),
    ("tid", &["(4294967295,65535)"]),
    ("pg_lsn", &["0/0", "FFFFFFFF/FFFFFFFF"]),
    ("pg_snapshot", &["10:20:10,14,15"]),
    ("regclass", &["pg_class", "0"]),
    ("regtype", &["timestamp with time zone", "public.mood"]),
    ("int2vector", &["", "1 2 -3"]),
    ("oidvector", &["1 4294967295"]),
    ("aclitem", &["postgres=arwdDxt/postgres"]),
    ("public.mood", &["ok", "so so", "it's \"quoted\", {so}", "NULL", ""]),
    ("public.\"od\"\"d, [ty'pe]\"", &["x"]),
    ("public.price", &["1.5", "NaN"]),
    ("public.instant", &["2024-02-29 12:00+02", "-infinity"]),
    ("public.ints", &["{}", "{1,NULL}", "[0:0][5:6]={{1,2}}"]),
    ("public.pair", &["(,)", "(1,\"\")", "(1,\"a \"\"b\"\", \\\\(\")", "(,NULL)"]),
    (
        "public.nested",
        &["(\"(1,\"\"x, y\"\")\",\"{ok,NULL,\"\"so so\"\"}\",\"[1,5)\",\"{\"\"a \\\\\"\"\"\"}\",infinity)"],
    ),
    ("boolean[]", &["{}", "{t,f,NULL}", "{NULL,NULL}"]),
    ("smallint[]", &["{-1,NULL,1}"]),
    ("integer[]", &["[2:3][-1:0]={{1,NULL},{3,4}}", "{{{{{{-1}}}}}}", "[2147483646:2147483646]={1}", "{{1},{2},{3}}"]),
    ("bigint[]", &["[-2147483648:-2147483647]={1,-9223372036854775808}"]),
    ("oid[]", &["{4294967295,NULL}"]),
    ("real[]", &["{NaN,-0,1e-45,NULL}"]),
    ("double precision[]", &["{-Infinity,0.1,1e15}", "{{{1,2},{3,4}},{{5,6},{7,NULL}}}"]),
    ("bytea[]", &["{\"\\\\x00ff\",NULL,\"\\\\x\"}", "{}"]),
    ("text[]", &["{}", "{NULL}", "{\"NULL\",null,\"\",\" \",\"a,b\",\"{\",\"\\\"\\\\\",ü,\"\n\"}", "[0:1]={a,b}"]),
    ("character(3)[]", &["{a,NULL}"]),
    ("\"char\"[]", &["{a,\"\",\",\"}"]),
    (
        "timestamp with time zone[]",
        &["{infinity,NULL,\"2024-02-29 12:00+02\",\"0044-03-15 00:00+00 BC\"}", "{{-infinity}}"],
    ),
    ("date[]", &["{infinity,\"0044-03-15 BC\"}"]),
    ("interval[]", &["{\"1 day\",NULL}"]),
    ("numeric[]", &["{NaN,1.00,NULL,1e400}"]),
    ("json[]", &["{\"{\\\"a\\\": [1]}\",NULL,null,\"null\"}"]),
    ("box[]", &["{(3,4),(1,2);(1,1),(0,0);NULL}"]),
    ("point[]", &["{\"(1,2)\",NULL}"]),
    ("public.mood[]", &["{ok,\"NULL\",NULL,\"\",\"it's \\\"quoted\\\", {so}\"}"]),
    ("public.pair[]", &["{\"(1,\\\"a \\\\\\\"\\\")\",NULL}", "[0:0]={\"(,)\"}"]),
    ("public.price[]", &["{1.5,NULL}"]),
    ("public.prices", &["{1.5,NULL}", "{}"]),
    ("public.instant[]", &["{infinity,\"2024-02-29 12:00+02\"}"]),
    ("public.ints[]", &["{\"{1,NULL}\",\"{}\"}"]),
    ("int4range[]", &["{\"[1,5)\",empty,NULL,\"(,)\"}"]),
    ("int4multirange[]", &["{\"{[1,5),[7,8)}\",\"{}\"}"]),
    ("int4range", &["empty", "(,)", "[1,)", "(,5]", "[3,3]"]),
    ("int8range", &["[-9223372036854775808,9223372036854775806]"]),
    ("numrange", &["[1.10,NaN)", "(,Infinity]", "[-1e400,1e400]"]),
    ("daterange", &["[-infinity,infinity]", "[\"0044-03-15 BC\",2024-02-29]"]),
    ("tsrange", &["(2024-01-01 00:00,\"infinity\"]"]),
    ("tstzrange", &["[\"2024-01-01 02:00+02\",)", "[-infinity,infinity)", "[\"0044-03-15 00:00+00 BC\",]"]),
    ("public.textrange", &["(\"\",)", "[\"a,b\",\"c\"\"d\\\\ \")", "[NULL,null]", "[\"(\",\"]\"]", "[\"\t\",\u{e9}]"]),
    ("public.floatrange", &["[-0,NaN]", "(-Infinity,1e-300)"]),
    ("public.pairrange", &["[\"(1,\"\"a b\"\")\",\"(2,)\")"]),
    ("int4multirange", &["{}", "{(,1),[5,7)}", "{(,)}"]),
    ("tstzmultirange", &["{[\"2024-01-01 02:00+02\",),[-infinity,\"0044-03-15 00:00+00 BC\")}"]),
    ("public.textmultirange", &["{[a,b),[\"c \"\"d\",)}"]),
    ("nummultirange", &["{}", "{[1.10,2.0),[3,NaN)}"]),
    ("int8multirange", &["{[-9223372036854775808,0)}"]),
    ("datemultirange", &["{[-infinity,2024-02-29)}"]),
    ("tsmultirange", &["{[2024-01-01 00:00,infinity]}"]),
    ("txid_snapshot", &["10:20:10,14,15"]),
    ("refcursor", &["", "a \"b\""]),
    ("regproc", &["pg_catalog.now", "0"]),
    ("regprocedure", &["pg_catalog.lower(text)", "0"]),
    ("regoper", &["pg_catalog.||/", "0"]),
    ("regoperator", &["pg_catalog.+(integer,integer)", "0"]),
    ("regrole", &["postgres", "0"]),
    ("regnamespace", &["public", "0"]),
    ("regcollation", &["pg_catalog.\"C\"", "0"]),
    ("regconfig", &["simple", "0"]),
    ("regdictionary", &["simple", "0"]),
];

/// What not every server has.
const OPTIONAL: &[(&str, &[&str])] = &[
    ("numeric(3,-2)", &["12345", "-98765", "49"]),
    ("interval", &["infinity", "-infinity"]),
    ("\"char\"", &["\\200"]),
    ("xml", &["<a b=\"1\">it's &amp;</a>", "text", ""]),
    ("xml[]", &["{<a/>,\"<b c=\\\"1\\\"/>\"}"]),
    ("public.hstore", &["", "a=>NULL, \"b c\"=>\"\\\"'\\\\\""]),
    ("public.ltree", &["", "Top.Science_1"]),
    ("public.lquery", &["Top.*{1,2}.!a|b"]),
    ("public.citext", &["", "Straße", "NULL"]),
    ("public.citext[]", &["{A,\"\",NULL}"]),
    ("public.cube", &["(1,-0.5),(2,1e-300)"]),
    ("public.isbn13", &["978-0-393-04002-9"]),
    ("public.geometry", &["POINT(1 -0.5)", "SRID=4326;POLYGON((0 0,1 0,1 1,0 0))", "POINT Z EMPTY"]),
    ("public.geometry(Point,4326)", &["SRID=4326;POINT(1e-300 179.9999999999999)"]),
    ("public.geography", &["SRID=4326;POINT(-71.06 42.28)"]),
    ("public.box2d", &["BOX(1 -0.5,2 3)", "BOX(-1e-300 0,0.1 179.9999999999999)"]),
    ("public.box3d", &["BOX3D(1 -0.5 0,2 3 1e-300)", "BOX3D(0 0 0,0.1 1 2)"]),
    ("public.vector", &["[1,-0.5,1e-30]"]),
    ("public.vector(3)[]", &["{\"[1,2,3]\",NULL}"]),
    ("public.halfvec", &["[1,-0.5,0]"]),
    ("public.sparsevec", &["{1:1,3:-2.5}/5"]),
];

/// Those for which `=` is not defined: equal text has to do.
const WITHOUT_EQUALITY: &[&str] = &[
    "json",
    "jsonpath",
    "json[]",
    "box[]",
    "point",
    "point[]",
    "polygon",
    "xml",
    "xml[]",
    "pg_snapshot",
    "public.lquery",
    "public.box3d",
    "txid_snapshot",
    "refcursor",
];

/// Extensions that bring a type; not every server has each: the last two are not PostgreSQL's own.
const EXTENSIONS: &[&str] = &["hstore", "ltree", "citext", "cube", "isn", "postgis", "vector"];

/// Creates the user-defined types, and the extensions that the server has.
///
/// # Errors
/// The types exist.
pub async fn define_types(database: &Database) -> Result<()> {
    database.execute(DEFINITIONS).await?;
    for extension in EXTENSIONS {
        if let Err(error) = database.execute(&format!("create extension {extension} schema public")).await {
            println!("LEFT OUT: the types of extension {extension}: {}", error.root_cause());
        }
    }
    Ok(())
}

/// The types that the server has, each with its values in the text that PostgreSQL writes in `session`. A type comes again
/// where its values are many.
///
/// # Errors
/// A type that every server has is missing, or a value is refused.
pub async fn type_table(session: &Client) -> Result<Vec<(String, Vec<String>)>> {
    let long = [format!("{}.{}", "12".repeat(200), "30".repeat(200)), format!("-0.{}1", "0".repeat(400))];
    let mut table = vec![("numeric".to_owned(), long.to_vec())];
    for (list, optional) in [(VALUES, false), (OPTIONAL, true)] {
        for (type_name, values) in list {
            let mut texts = Vec::new();
            for value in *values {
                match written(session, &literal(value, type_name)).await {
                    Ok(text) => texts.push(text),
                    Err(error) if optional => println!("LEFT OUT: {value} of {type_name}: {}", error.root_cause()),
                    Err(error) => return Err(error.context(format!("{value} of {type_name}"))),
                }
            }
            if !texts.is_empty() {
                table.push(((*type_name).to_owned(), texts));
            }
        }
    }
    Ok(table)
}

/// What PostgreSQL writes for an expression that is not NULL.
///
/// # Errors
/// It is refused.
pub async fn written(session: &Client, expression: &str) -> Result<String> {
    let messages = session.simple_query(&format!("select {expression}")).await?;
    let row = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    Ok(row.context("one row that is not null")?.to_owned())
}

/// A value as SQL.
#[must_use]
pub fn literal(text: &str, type_name: &str) -> String {
    format!("'{}'::{type_name}", text.replace('\'', "''"))
}

/// Was a comparison refused since the type has no `=`? It is ambiguous where it has none, but casts to several types that have.
#[must_use]
pub fn lacks_equality(error: &tokio_postgres::Error) -> bool {
    matches!(error.code(), Some(&SqlState::UNDEFINED_FUNCTION | &SqlState::AMBIGUOUS_FUNCTION))
}

/// Is `=` defined for the type?
#[must_use]
pub fn has_equality(type_name: &str) -> bool {
    !WITHOUT_EQUALITY.contains(&type_name)
}
