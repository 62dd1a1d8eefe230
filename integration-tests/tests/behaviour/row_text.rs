//! A row that is decoded again holds, to PostgreSQL, the values that were encoded, whatever their type.
//!
//! PostgreSQL writes each value as it does in the stream; the codec turns that into a row and the row into text;
//! PostgreSQL reads that text. It must find the value not distinct from the first, and write it alike, which also tells
//! -0 from 0 and 1.0 from 1.00, and holds for types that have no equality.

use anyhow::{Context, Result, bail, ensure};
use bytes::BytesMut;
use tidegate_integration_tests::{Cluster, Database};
use tidegate_model::TableName;
use tidegate_postgres::{ConnectConfig, Session, relation_columns};
use tidegate_proto::v1;
use tidegate_schema::{ColumnSpec, RowDecoder, RowEncoder, RowText, RowType, RowTypeSpec, TypeShape, Value, ValueKind};
use tokio_postgres::{SimpleQueryMessage, error::SqlState};

const TYPES: &str = r#"
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

/// Types and values as a user writes them; PostgreSQL's output decides what is encoded.
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
];

/// A database with the types.
struct Source {
    /// A session as Tidegate's own.
    session: Session,
    /// A user's session: Tidegate's own do not see the operators of extensions.
    user: Database,
}

/// A column, and its values in the text that PostgreSQL writes.
type Column = (ColumnSpec, Vec<String>);

impl Source {
    async fn new(name: &str) -> Result<Self> {
        let user = Cluster::shared().await?.database(name).await?;
        let session = Session::connect(&ConnectConfig::from_url(user.url())?).await?;
        session.client().batch_execute(TYPES).await?;
        for extension in ["hstore", "ltree", "citext", "cube", "isn"] {
            // Not every server has it.
            session.client().batch_execute(&format!("create extension {extension} schema public")).await.ok();
        }
        Ok(Source { session, user })
    }

    /// What PostgreSQL writes for an expression, as it does in the stream.
    async fn text(&self, expression: &str) -> Result<String, tokio_postgres::Error> {
        let messages = self.session.client().simple_query(&format!("select {expression}")).await?;
        let row = messages.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        });
        Ok(row.expect("one row that is not null").to_owned())
    }

    /// The columns of a table with these types, in order.
    async fn columns(&self, types: &[&str]) -> Result<Vec<ColumnSpec>> {
        let columns: Vec<String> = (1..).zip(types).map(|(n, type_name)| format!("c{n} {type_name}")).collect();
        self.session.client().batch_execute(&format!("create table public.every ({})", columns.join(", "))).await?;
        let oid = self.text("'public.every'::regclass::oid").await?.parse()?;
        let columns = relation_columns(&self.session, oid).await?;
        let spec = |(field, column): (u32, &tidegate_postgres::CatalogColumn)| ColumnSpec {
            name: column.name.clone(),
            attnum: column.attnum,
            type_oid: column.type_oid,
            type_name: column.type_name.clone(),
            codec: ValueKind::of(column.base_type_oid, shape(column.shape)),
            key: false,
            field,
        };
        Ok((1..).zip(&columns).map(spec).collect())
    }

    /// Does PostgreSQL find that the text holds the value of another? None where the type has no equality.
    async fn same(&self, column: &ColumnSpec, one: &str, other: &str) -> Result<Option<bool>> {
        let (one, other) = (literal(one, &column.type_name), literal(other, &column.type_name));
        match self.user.client().query_one(&format!("select {one} is not distinct from {other}"), &[]).await {
            Ok(row) => Ok(Some(row.try_get(0)?)),
            Err(error) if error.code() == Some(&SqlState::UNDEFINED_FUNCTION) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// All columns and values that the server has.
    async fn every_value(&self) -> Result<Vec<Column>> {
        let long = [format!("{}.{}", "12".repeat(200), "30".repeat(200)), format!("-0.{}1", "0".repeat(400))];
        let mut found = vec![("numeric", long.to_vec())];
        for &(type_name, values) in VALUES.iter().chain(OPTIONAL) {
            let optional = OPTIONAL.contains(&(type_name, values));
            let readable = self.text(&literal(values[0], type_name)).await;
            match readable {
                Err(_) if optional => continue,
                Err(error) => bail!("{type_name}: {error:?}"),
                Ok(_) => found.push((type_name, values.iter().map(|&text| text.to_owned()).collect())),
            }
        }
        let types: Vec<&str> = found.iter().map(|(type_name, _)| *type_name).collect();
        let mut columns = Vec::new();
        for (column, (_, values)) in self.columns(&types).await?.into_iter().zip(found) {
            let mut texts = Vec::new();
            for value in values {
                let text = self.text(&literal(&value, &column.type_name)).await;
                texts.push(text.with_context(|| format!("{value} of {}", column.type_name))?);
            }
            columns.push((column, texts));
        }
        Ok(columns)
    }
}

fn literal(text: &str, type_name: &str) -> String {
    format!("'{}'::{type_name}", text.replace('\'', "''"))
}

/// The catalog's answer in the codec's words.
fn shape(shape: tidegate_postgres::TypeShape) -> TypeShape {
    use tidegate_postgres::TypeShape as Catalog;
    match shape {
        Catalog::Base | Catalog::Pseudo => TypeShape::Base,
        Catalog::Domain { base_oid } => TypeShape::Domain { base_oid },
        Catalog::Enum => TypeShape::Enum,
        Catalog::Composite => TypeShape::Composite,
        Catalog::Array { element_oid, delimiter } => TypeShape::Array { element_oid, delimiter },
        Catalog::Range { .. } => TypeShape::Range,
        Catalog::Multirange => TypeShape::Multirange,
    }
}

/// The way there and back of one column's value.
fn there_and_back(column: &ColumnSpec, text: &str) -> Result<String> {
    let columns = std::slice::from_ref(column);
    let encode = |text: &str| -> Result<BytesMut> {
        let mut row = BytesMut::new();
        RowEncoder::new(columns).encode([Value::Text(text.as_bytes())].into_iter(), &mut row)?;
        Ok(row)
    };
    let row = encode(text)?;
    let mut decoded = RowText::default();
    RowDecoder::new(columns).text(&row, &mut decoded)?;
    let back = decoded.value(0).context("a value")?.to_owned();
    ensure!(encode(&back)? == row, "{back:?} is not encoded as {text:?} is");

    let spec = RowTypeSpec {
        row_type: 1,
        source: "shop".parse()?,
        name: TableName::new("public", "every"),
        table_oid: 1,
        identity: v1::ReplicaIdentity::Nothing,
        columns: columns.to_vec(),
    };
    RowDecoder::of_row_type(&RowType::new(spec.to_proto())?, |_| b',')?.text(&row, &mut decoded)?;
    ensure!(decoded.value(0) == Some(&back), "another text by the row type: {:?}", decoded.value(0));
    Ok(back)
}

/// Does the value come back from the row as PostgreSQL knows it?
async fn check(source: &Source, column: &ColumnSpec, text: &str) -> Result<()> {
    let back = there_and_back(column, text)?;
    ensure!(back == text, "it comes back as {back:?}");
    let same = source.same(column, &back, text).await?;
    let comparable = !WITHOUT_EQUALITY.contains(&column.type_name.as_str());
    ensure!(same == comparable.then_some(true), "equality says {same:?}");
    let written = source.text(&literal(&back, &column.type_name)).await?;
    ensure!(written == text, "it is written as {written:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decoded_row_holds_the_values_that_were_encoded() -> Result<()> {
    let source = Source::new("row_text").await?;
    let mut value_count = 0;
    let mut complaints = Vec::new();
    for (column, texts) in source.every_value().await? {
        for text in texts {
            if let Err(error) = check(&source, &column, &text).await {
                complaints.push(format!("{} {text:?}: {error}", column.type_name));
            }
            value_count += 1;
        }
    }
    ensure!(complaints.is_empty(), "\n{}", complaints.join("\n"));
    ensure!(value_count > 240, "only {value_count} values");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn floats_are_printed_as_postgresql_prints_them() -> Result<()> {
    let source = Source::new("row_text_floats").await?;
    let columns = source.columns(&["double precision", "real"]).await?;
    // Powers of two, powers of ten, and what lies anywhere.
    let query = "select 2.0::float8 ^ n, (2.0::float8 ^ (n / 8.0)::int)::real from generate_series(-1022, 1016) n
        union all
        select 10.0::float8 ^ n, (10.0::float8 ^ (n / 8))::real from generate_series(-307, 307) n
        union all
        select (random() - 0.5) * 10.0::float8 ^ (n % 300), ((random() - 0.5) * 10.0::float8 ^ (n % 30))::real
            from generate_series(-20000, 20000) n";
    for message in source.session.client().simple_query(query).await? {
        let SimpleQueryMessage::Row(row) = message else { continue };
        for (index, column) in columns.iter().enumerate() {
            let text = row.get(index).context("a value")?;
            let back = there_and_back(column, text)?;
            ensure!(back == text, "{text} becomes {back}");
        }
    }
    Ok(())
}
