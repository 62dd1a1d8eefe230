//! A pass in the key's order meets each row once, whatever the key's types, collations and index are.

use tidegate_postgres::snapshot::{ChunkReader, KeyValues, Range, TablePlan};

use super::{Row, after, numbers, plan, read, read_all, reader};
use crate::launcher::Server;

const ROW_COUNT: u32 = 200;

/// Name, the key's columns, the key, values of row n. A table (columns…, n int) is made of each.
const KEYS: &[(&str, &str, &str, &str)] = &[
    ("k_int", "a int", "a", "(n * 7919) % 1000 - 500"),
    ("k_bigint", "a bigint", "a", "n::bigint * n * 1000003 - 4000000000"),
    (
        "k_text",
        "a text",
        "a",
        "(ARRAY['ä', 'Z', 'a', 'e''\\', '-', ' b', 'ß', E'\\t'])[n % 8 + 1] || n || (ARRAY['x', 'X'])[n % 2 + 1]",
    ),
    ("k_text_c", "a text COLLATE \"C\"", "a", "(ARRAY['ä', 'Z', 'a', '', '-', '漢'])[n % 6 + 1] || n"),
    ("k_numeric", "a numeric", "a", "CASE n WHEN 0 THEN 'NaN' ELSE (n - 100) / 7.0 END"),
    ("k_uuid", "a uuid", "a", "md5(n::text)::uuid"),
    ("k_enum", "a big_mood", "a", "('m' || n % 200)::big_mood"),
    (
        "k_timestamp",
        "a timestamp(3)",
        "a",
        "CASE n WHEN 0 THEN 'infinity' WHEN 1 THEN '-infinity' ELSE '0044-01-01 BC'::timestamp + n * interval '100 years 1.5 s' END",
    ),
    (
        "k_timestamptz",
        "a timestamptz",
        "a",
        "CASE n WHEN 0 THEN '-infinity' ELSE '2026-01-01 00:00:00.000001+05'::timestamptz + n * interval '7 h' END",
    ),
    ("k_date", "a date", "a", "CASE n WHEN 0 THEN 'infinity' WHEN 1 THEN '-infinity' ELSE '2026-01-01'::date - n END"),
    ("k_mixed", "a int, b text, c uuid", "b, a, c", "n % 3, (ARRAY['a', 'B', 'ä'])[n % 3 + 1], md5(n::text)::uuid"),
    ("k_desc", "a int NOT NULL, b text NOT NULL", "", "n % 5, n::text"),
    ("k_quoted", "\"Größe \"\"t\"\"\" int, \"select\" text", "\"select\", \"Größe \"\"t\"\"\"", "n, 'x'"),
    ("k_domain", "a label", "a", "n || (ARRAY['ä', 'Z', 'a'])[n % 3 + 1]"),
    ("k_char", "a char(6)", "a", "n || (ARRAY['', ' ', 'a'])[n % 3 + 1]"),
    ("k_varchar", "a varchar(9)", "a", "'v' || n"),
    ("k_pattern", "a text NOT NULL", "", "(ARRAY['ä', 'Z', 'a', '-'])[n % 4 + 1] || n"),
    ("k_bytea", "a bytea", "a", "decode(md5(n::text), 'hex')"),
    ("k_bool", "a bool, b smallint", "a, b", "n % 2 = 0, n"),
    (
        "k_float",
        "a float8",
        "a",
        "CASE n WHEN 0 THEN 'NaN' WHEN 1 THEN '-0' WHEN 2 THEN 'infinity' WHEN 3 THEN '-infinity' ELSE (n - 100) / 3.0::float8 - 1000 END",
    ),
    ("k_real", "a real", "a", "n / 7.0::real"),
    ("k_bit", "a bit(9)", "a", "n::bit(9)"),
    ("k_varbit", "a varbit", "a", "n::bit(9)::varbit"),
    ("k_char_type", "a \"char\", b name", "a, b", "chr(65 + n % 20)::\"char\", ('n' || n)::name"),
    ("k_array", "a int[]", "a", "ARRAY[n % 7, n]"),
    ("k_composite", "a pair", "a", "ROW(n % 7, E'x,\"' || n)::pair"),
    ("k_range", "a int4range", "a", "int4range(n % 7, n + 10)"),
    ("k_interval", "a interval", "a", "n * interval '1 month -3 days 4.5 s'"),
    ("k_inet", "a inet", "a", "'10.0.0.0'::inet + n"),
    ("k_jsonb", "a jsonb", "a", "jsonb_build_object('a', n, 'b', '\\')"),
    ("k_money", "a money", "a", "(n * 1234.56)::numeric::money"),
];

/// Its key's index has no order, so that each chunk is sorted.
const NO_ORDER: &str = "k_overlaps";

/// What some servers lack: their statements fail there, and the table is left out.
const OPTIONAL: &[(&str, &str, &str, &str, &str)] = &[
    (
        "CREATE EXTENSION IF NOT EXISTS citext SCHEMA ext",
        "k_citext",
        "a ext.citext",
        "a",
        "(ARRAY['a', 'B', 'c'])[n % 3 + 1] || n",
    ),
    (
        "CREATE EXTENSION IF NOT EXISTS citext SCHEMA ext",
        "k_citext_int",
        "a ext.citext, b int",
        "a, b",
        "(ARRAY['a', 'B', 'b0'])[n % 3 + 1], n",
    ),
    (
        "CREATE COLLATION public.nd (provider = icu, locale = 'und-u-ks-level2', deterministic = false)",
        "k_nd",
        "a text COLLATE public.nd",
        "a",
        "(ARRAY['a', 'B', 'ä', 'Ö'])[n % 4 + 1] || n",
    ),
    (
        "CREATE EXTENSION btree_gist SCHEMA ext; CREATE TABLE public.probe (a int, b int4range, PRIMARY KEY (a, b WITHOUT OVERLAPS))",
        NO_ORDER,
        "a int, b int4range",
        "a, b WITHOUT OVERLAPS",
        "n % 5, int4range(n * 2, n * 2 + 1)",
    ),
];

async fn make(server: &Server, (table, columns, key, values): (&str, &str, &str, &str)) {
    let key = if key.is_empty() { String::new() } else { format!(", PRIMARY KEY ({key})") };
    let all = format!(
        "SET search_path = public, pg_catalog;
         CREATE TABLE {table} ({columns}, n int NOT NULL{key}); ALTER PUBLICATION pub ADD TABLE {table};
         INSERT INTO {table} SELECT {values}, n FROM generate_series(0, {ROW_COUNT} - 1) n ORDER BY md5(n::text)"
    );
    let session = server.session().await;
    // Statements are read with the setting as it was before all of them.
    session.client().batch_execute("SET standard_conforming_strings = on").await.expect("a setting");
    session.client().batch_execute(&all).await.unwrap_or_else(|error| panic!("{table}: {error:?}"));
}

#[tokio::test]
async fn each_row_is_read_once_in_order_of_any_key() {
    let server = Server::start(&["standard_conforming_strings = off", "lc_monetary = 'C'"]);
    server
        .sql(
            "CREATE PUBLICATION pub; CREATE SCHEMA ext; CREATE TYPE public.pair AS (a int, b text);
             CREATE DOMAIN public.label AS text COLLATE \"C\" CHECK (length(value) < 99);
             DO $$ BEGIN EXECUTE (SELECT 'CREATE TYPE public.big_mood AS ENUM (' || string_agg(quote_literal('m' || (n * 37) % 200), ',' ORDER BY n)
                                  || ')' FROM generate_series(0, 199) n); END $$",
        )
        .await;
    let mut tables = Vec::new();
    for &case in KEYS {
        make(&server, case).await;
        tables.push(case.0);
    }
    server
        .sql(
            "CREATE UNIQUE INDEX k_desc_i ON public.k_desc (a DESC, b); ALTER TABLE public.k_desc REPLICA IDENTITY USING INDEX k_desc_i;
             CREATE UNIQUE INDEX k_pattern_i ON public.k_pattern (a text_pattern_ops);
             ALTER TABLE public.k_pattern REPLICA IDENTITY USING INDEX k_pattern_i",
        )
        .await;
    let session = server.session().await;
    for &(needed, table, columns, key, values) in OPTIONAL {
        if session.client().batch_execute(needed).await.is_ok() {
            make(&server, (table, columns, key, values)).await;
            tables.push(table);
        } else {
            eprintln!("{table} is left out: the server cannot {needed}");
        }
    }
    let mut reader = reader(&server);
    for table in tables {
        let plan = plan(&session, table).await;
        assert!(!plan.key.is_empty(), "{table}");
        let mut orders = Vec::new();
        for row_limit in [1, 3, 7] {
            let rows = read_all(&mut reader, &plan, row_limit).await;
            assert_eq!(numbers(&rows), (0..ROW_COUNT).collect::<Vec<_>>(), "{table} in chunks of {row_limit}");
            orders.push(rows);
        }
        assert!(orders.windows(2).all(|pair| pair[0] == pair[1]), "{table}");
        keys_are_found(&mut reader, &plan, &orders[0]).await;
        if table != NO_ORDER {
            the_index_is_used(&server, &plan).await;
        }
    }
}

fn key_of(plan: &TablePlan, row: &Row) -> KeyValues {
    plan.key.iter().map(|column| row[column.column].as_ref().expect("a key").as_bytes().into()).collect()
}

/// Some rows by their keys, and one key of no row's is left out by reading a key twice.
async fn keys_are_found(reader: &mut ChunkReader, plan: &TablePlan, rows: &[Row]) {
    let wanted: Vec<&Row> = rows.iter().step_by(37).collect();
    let mut keys: Vec<KeyValues> = wanted.iter().map(|row| key_of(plan, row)).collect();
    keys.push(keys[0].clone());
    let (found, facts) = read(reader, plan, &Range::Keys(keys)).await.expect("rows");
    let expected: Vec<Row> = wanted.into_iter().cloned().collect();
    assert_eq!((numbers(&found), facts.next), (numbers(&expected), None), "{}", plan.name());
}

/// A chunk behind a cursor as the server explains it: by the key's index, with the cursor as the index's condition.
async fn the_index_is_used(server: &Server, plan: &TablePlan) {
    let session = server.session().await;
    let client = session.client();
    client.batch_execute("SET enable_sort = off").await.expect("a setting");
    let (_, facts) = read(&mut reader(server), plan, &after(None, 3)).await.expect("a chunk");
    let next = facts.next.expect("more rows");
    let sql = plan.query(&after(Some(next), 3)).expect("a query");
    let lines = client.simple_query(&format!("EXPLAIN {sql}")).await.expect("a plan of the server");
    let explained: Vec<String> = lines
        .iter()
        .filter_map(|line| match line {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        })
        .collect();
    let text = explained.join("\n");
    assert!(
        text.contains("Index") && text.contains("Index Cond") && !text.contains("Sort"),
        "{}: {text}\n{sql}",
        plan.name()
    );
}
