//! Conditions mean what they mean in PostgreSQL: the same tables, rows and conditions are given to both.
//!
//! Rows go through the real codec. Each condition is compared for each row, as it was written and as Tidegate prints it; the
//! printed form in a session whose search path begins with a schema that has other operators and types of the same names.
//! Subqueries read tables of the same columns; their sets are made of those tables' rows by the subqueries themselves.
//! `TIDEGATE_TEST_PREDICATES` says how many conditions.

use anyhow::{Context, Result, ensure};
use bytes::BytesMut;
use rand::{RngExt, rngs::StdRng, seq::IndexedRandom};
use tidegate_integration_tests::{Cluster, Database, Seed, asked_for};
use tidegate_model::TableName;
use tidegate_postgres::{ConnectConfig, Session};
use tidegate_schema::{ColumnSpec, RowEncoder, TypeShape, Value, ValueKind};
use tidegate_views::{CollationFacts, ColumnFacts, EnumFacts, EvaluationError, Predicate, TableFacts};
use tokio_postgres::SimpleQueryMessage;

mod examples;
mod sets;
mod writer;

use examples::EXAMPLES;
use sets::Sets;
use writer::Writer;

/// Columns by name and type, with awkward values as SQL.
const COLUMNS: &[(&str, &str, u32, &str)] = &[
    ("b", "boolean", 16, "true false"),
    ("s", "smallint", 21, "0 1 -1 7 32767 -32768"),
    ("i", "integer", 23, "0 1 -1 42 2147483647 -2147483648"),
    ("l", "bigint", 20, "0 1 -1 42 4294967295 9223372036854775807 -9223372036854775808"),
    (
        "n",
        "numeric",
        1700,
        "0 0.00 1 1.0 -1.5 0.1 42 NaN Infinity -Infinity 123456789012345678901234567890.000000001 1e-30 9999.9999",
    ),
    ("m", "numeric(10,2)", 1700, "0 0.10 -7.25 42 99999999.99 NaN"),
    ("r", "real", 700, "0 -0 1.5 0.1 NaN Infinity -Infinity 3.4e38 1e-45 42"),
    ("d", "double precision", 701, "0 -0 1.5 0.1 NaN Infinity -Infinity 1.7e308 5e-324 42 0.30000000000000004"),
    ("t", "text", 25, "'' a A ab abc 'a ' 'a%c' 'a_c' é Éa 日本 'a\\c' 'O''x' 42"),
    ("v", "varchar(10)", 1043, "'' a 'a ' ab aBc é 42"),
    ("c", "char(5)", 1042, "'' a ab 'a b' é abcde"),
    ("u", "uuid", 2950, "00000000-0000-0000-0000-000000000000 123e4567-e89b-12d3-a456-426614174000"),
    ("dt", "date", 1082, "2024-02-29 2000-01-01 '0044-03-15 BC' infinity -infinity 5874897-12-31 '4714-11-24 BC'"),
    (
        "ts",
        "timestamp",
        1114,
        "'2024-02-29 12:34:56.789' '2000-01-01 00:00:00' '0044-03-15 01:00:00 BC' infinity -infinity",
    ),
    (
        "tz",
        "timestamptz",
        1184,
        "'2024-02-29 12:34:56.789+00' '2000-01-01 00:00:00+02' '0044-03-15 01:00:00+00 BC' infinity '12024-01-01 00:00:00+00'",
    ),
    ("tm", "time", 1083, "00:00:00 12:34:56.000001 24:00:00 23:59:59"),
    ("y", "bytea", 17, "'' '\\x00' '\\x00ff' '\\xff' '\\x616263'"),
    ("e", "public.mood", 0, "sad ok 'so happy'"),
    ("o", "oid", 26, "0 1 42 4294967295"),
    ("ia", "integer[]", 1007, "{} {1} {1,2,3} {3,2,1,1} {1,NULL} [0:1]={1,2} {{1,2},{3,42}} {-1,2147483647}"),
    ("ta", "text[]", 1009, "{} {a} '{a,ab,\"\"}' {NULL,é} '{\"a b\",\"NULL\"}' {42,1}"),
    ("da", "date[]", 1182, "{} {2024-02-29} {2000-01-01,infinity,NULL}"),
    (
        "j",
        "jsonb",
        3802,
        "{} [] null 1 '\"a\"' '{\"a\":1,\"b\":{\"a\":[1,2,{\"c\":null}]}}' '{\"a\":1.0,\"bb\":\"x\"}' '[1,\"a\",[2],{\"a\":\"é\"}]' '{\"a\":\"42\",\"b\":true}' '[1.50,1e2,\"a\\n\\u0001\",null]' '{\"a\":[1,\"ab\",\"a\"],\"c\":0.1}'",
    ),
    (
        "js",
        "json",
        114,
        "{} [] null '{\"a\": 1,  \"a\" :\"é\\u00e9\"}' '{\"b\": {\"a\":[1, 2 ]}, \"a\":null}' '[1, \"a\", {\"a\":1.0}]' '\"a\"' '{\"a\": \"\\u0000\", \"b\": 1}'",
    ),
    ("ir", "int4range", 3904, "empty [1,10) (,5] [42,) (,) [1,1] (-2147483648,0)"),
    ("nr", "numrange", 3906, "empty [1,1.50] (1,2) (,0.1] [NaN,) (-Infinity,Infinity)"),
    ("dr", "daterange", 3912, "empty [2024-02-29,2024-03-01] (,2000-01-01) [2000-01-01,infinity) [-infinity,infinity]"),
    ("sr", "tsrange", 3908, "empty '[\"2024-02-29 12:34:56.789\",infinity]' '(,2000-01-01)' '[2000-01-01,2000-01-01]'"),
    (
        "iv",
        "interval",
        1186,
        "'1 day' '24 hours' '1 mon' '30 days' '-1 mon -2 days' '1 year 2 mons -3 days 04:05:06.7' '00:00:00' '-00:00:00.000001' '100 years'",
    ),
];

/// Tables that subqueries read, with how many rows they have; all have the same columns.
const INNER: [(&str, usize); 3] = [("few", 4), ("nothing", 0), ("More Rows", 25)];

const VERDICTS: &str = "
    create function public.verdicts(condition text) returns text language plpgsql as $$
    declare answer text; answers text := ''; row_id int;
    begin
        execute format('select string_agg(coalesce((%s)::pg_catalog.bool::pg_catalog.text, ''null''), '','' order by id) from public.rows', condition) into answers;
        return answers;
    exception when others then
        answers := '';
        for row_id in select id from public.rows order by id loop
            begin
                execute format('select coalesce((%s)::pg_catalog.bool::pg_catalog.text, ''null'') from public.rows where id operator(pg_catalog.=) $1', condition)
                    into answer using row_id;
            exception
                when syntax_error or undefined_function or undefined_column or datatype_mismatch or ambiguous_function
                    or indeterminate_datatype or cannot_coerce or undefined_object then raise;
                when others then answer := 'error';
            end;
            answers := answers || ',' || answer;
        end loop;
        return ltrim(answers, ',');
    end $$";

/// What an unqualified name would find first.
const TRAPS: &str = "
    create schema trap;
    create function trap.yes(int, int) returns bool language sql immutable as 'select true';
    create function trap.yes_text(text, text) returns bool language sql immutable as 'select true';
    create operator trap.= (leftarg = int, rightarg = int, function = trap.yes);
    create operator trap.< (leftarg = int, rightarg = int, function = trap.yes);
    create operator trap.= (leftarg = text, rightarg = text, function = trap.yes_text);
    create operator trap.~~ (leftarg = text, rightarg = text, function = trap.yes_text);
    create domain trap.int4 as pg_catalog.text;
    create domain trap.numeric as pg_catalog.text";

struct Oracle {
    user: Database,
    trapped: Database,
    rows: Vec<BytesMut>,
    table: TableFacts,
    /// What subqueries read: the table itself, and [`INNER`].
    others: Vec<TableFacts>,
    /// The rows of those.
    inner: Vec<(TableName, Vec<BytesMut>)>,
}

/// The words of a list, some in quotes.
fn words(text: &str) -> Vec<String> {
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

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

impl Oracle {
    async fn new(name: &str, random: &mut StdRng, row_count: usize) -> Result<Self> {
        let user = Cluster::shared().await?.database(name).await?;
        user.execute("create type public.mood as enum ('sad', 'ok', 'so happy')").await?;
        user.execute(VERDICTS).await?;
        user.execute(TRAPS).await?;
        let mut inner =
            vec![(TableName::new("public", "rows"), filled(&user, "rows", (&mut *random, row_count)).await?)];
        for (table, row_count) in INNER {
            inner.push((TableName::new("public", table), filled(&user, table, (&mut *random, row_count)).await?));
        }
        let trapped = user.another().await?;
        trapped.execute("set search_path = trap, public, pg_catalog; set standard_conforming_strings = off").await?;
        trapped.execute("set datestyle = 'Postgres, DMY'; set timezone = 'Asia/Tokyo'").await?;
        let others = inner.iter().map(|(name, _)| table(&name.table, true)).collect();
        Ok(Oracle { user, trapped, rows: inner[0].1.clone(), table: table("rows", false), others, inner })
    }

    async fn verdicts(&self, database: &Database, condition: &str) -> Result<Vec<String>> {
        let answer = database.client().query_one("select public.verdicts($1)", &[&condition]).await;
        let text: String = answer.with_context(|| condition.to_owned())?.try_get(0)?;
        Ok(text.split(',').map(str::to_owned).collect())
    }

    /// Compares all rows; None where the condition is refused. Tells how many are not decided here, and whether there are subqueries.
    async fn compare(&self, condition: &str) -> Result<Option<(usize, bool)>> {
        let predicate = match Predicate::with_tables(condition, &[], &self.table, &self.others) {
            Ok(predicate) => predicate,
            Err(_) => return Ok(None),
        };
        let Some(sets) = Sets::of(&predicate, &self.inner)? else { return Ok(None) };
        let written = self.verdicts(&self.user, condition).await?;
        let printed = self.verdicts(&self.trapped, predicate.sql()).await?;
        let normal = self.verdicts(&self.trapped, predicate.normal_form()).await?;
        let mut undecided = 0;
        for (at, row) in self.rows.iter().enumerate() {
            let outcome = predicate.evaluate_given(row, &sets)?;
            let ours = match outcome.verdict {
                Ok(Some(verdict)) => verdict.to_string(),
                Ok(None) => "null".to_owned(),
                Err(EvaluationError::Undecided { .. }) => {
                    undecided += 1;
                    continue;
                }
                Err(_) => "error".to_owned(),
            };
            for (theirs, form) in [(&written, "written"), (&printed, "printed"), (&normal, "normal form")] {
                // In the normal form, operands that fail may stand before the one that decides, or behind it.
                let normal = form == "normal form";
                let hides_error = outcome.hides_error || sets.hide_error();
                let allowed = (theirs[at] == "error" && (hides_error || normal)) || (ours == "error" && normal);
                ensure!(
                    theirs[at] == ours || allowed,
                    "row {at}: PostgreSQL says {}, Tidegate {ours} ({:?})\n{form}\n{condition}\n{}",
                    theirs[at],
                    outcome.verdict,
                    predicate.sql()
                );
            }
        }
        Ok(Some((undecided, !predicate.written_subqueries().is_empty())))
    }
}

/// A new table with random rows, which are read as they come out of it.
async fn filled(database: &Database, table: &str, (random, row_count): (&mut StdRng, usize)) -> Result<Vec<BytesMut>> {
    let definitions: Vec<String> = COLUMNS.iter().map(|(name, kind, ..)| format!("{name} {kind}")).collect();
    let create = format!("create table public.\"{table}\" (id int primary key, {})", definitions.join(", "));
    database.execute(&create).await?;
    for id in 0..row_count {
        let mut values = vec![id.to_string()];
        for (.., pool) in COLUMNS {
            let value = words(pool).choose(random).context("a value")?.clone();
            values.push(if random.random_ratio(1, 6) { "null".to_owned() } else { quoted(&value) });
        }
        database.execute(&format!("insert into public.\"{table}\" values ({})", values.join(", "))).await?;
    }
    let session = Session::connect(&ConnectConfig::from_url(database.url())?).await?;
    let (mut rows, encoder) = (Vec::new(), RowEncoder::new(&columns()));
    let select = format!("select * from public.\"{table}\" order by id");
    for message in session.client().simple_query(&select).await? {
        let SimpleQueryMessage::Row(row) = message else { continue };
        let mut encoded = BytesMut::new();
        let text = |at| row.get(at).map_or(Value::Null, |text: &str| Value::Text(text.as_bytes()));
        encoder.encode((1..=COLUMNS.len()).map(text), &mut encoded)?;
        rows.push(encoded);
    }
    Ok(rows)
}

fn columns() -> Vec<ColumnSpec> {
    let column = |(field, (name, type_name, oid, _)): (u32, &(&str, &str, u32, &str))| ColumnSpec {
        name: (*name).to_owned(),
        attnum: 0,
        type_oid: *oid,
        type_name: (*type_name).to_owned(),
        codec: ValueKind::of(*oid, if *oid == 0 { TypeShape::Enum } else { TypeShape::Base }),
        key: false,
        field,
    };
    (1..).zip(COLUMNS).map(column).collect()
}

/// `turned`: its columns come in another order, so that an enum is not told by the same place.
fn table(name: &str, turned: bool) -> TableFacts {
    let collation = CollationFacts { name: "default".to_owned(), is_default: true, deterministic: true, is_c: true };
    let column = |(field, (name, _, oid, _)): (u32, &(&str, &str, u32, &str))| ColumnFacts {
        name: (*name).to_owned(),
        field,
        type_oid: *oid,
        collation: matches!(oid, 25 | 1009 | 1042 | 1043).then(|| collation.clone()),
        enum_type: (*oid == 0).then(|| EnumFacts {
            schema: "public".to_owned(),
            name: "mood".to_owned(),
            labels: ["sad", "ok", "so happy"].map(str::to_owned).to_vec(),
        }),
    };
    let mut columns: Vec<_> = (1..).zip(COLUMNS).map(column).collect();
    if turned {
        columns.reverse();
    }
    TableFacts { schema: "public".to_owned(), name: name.to_owned(), columns, default_collation: collation.clone() }
}

#[tokio::test(flavor = "multi_thread")]
async fn conditions_mean_what_they_mean_in_postgresql() -> Result<()> {
    let count = asked_for("TIDEGATE_TEST_PREDICATES", 600);
    let seed = Seed::from_environment();
    let oracle = Oracle::new("predicate", &mut seed.generator(0), 60).await?;
    let mut random = seed.generator(1);
    let (mut undecided, mut accepted, mut asking) = (0, 0, 0);
    let mut complaints = Vec::new();
    for _ in 0..count {
        let condition = Writer::new(&mut random).condition(3);
        match oracle.compare(&condition).await {
            Ok(Some((count, has_subqueries))) => {
                undecided += count;
                accepted += 1;
                asking += usize::from(has_subqueries);
            }
            Ok(None) => {}
            Err(error) => complaints.push(format!("{error:#}")),
        }
    }
    let verdicts = accepted * oracle.rows.len();
    println!(
        "{accepted} of {count} conditions accepted, {asking} with subqueries; {verdicts} verdicts compared, {undecided} of them not decided"
    );
    ensure!(complaints.is_empty(), "{} differ:\n{}", complaints.len(), complaints.join("\n\n"));
    ensure!(undecided * 20 < verdicts, "{undecided} of {verdicts} verdicts are not decided");
    ensure!(accepted * 3 > count, "only {accepted} of {count} conditions were accepted");
    ensure!(asking * 50 > accepted, "only {asking} of {accepted} conditions had subqueries");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_documented_is_accepted() -> Result<()> {
    let seed = Seed::from_environment();
    let oracle = Oracle::new("predicate_examples", &mut seed.generator(0), 60).await?;
    let mut complaints = Vec::new();
    for condition in EXAMPLES {
        if let Err(refusal) = Predicate::with_tables(condition, &[], &oracle.table, &oracle.others) {
            complaints.push(format!("{condition}: {refusal}"));
        }
        if let Err(error) = oracle.compare(condition).await {
            complaints.push(format!("{error:#}"));
        }
    }
    ensure!(complaints.is_empty(), "{} differ:\n{}", complaints.len(), complaints.join("\n\n"));
    Ok(())
}
