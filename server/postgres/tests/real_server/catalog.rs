//! Tables, columns, types and publications as the server has them.

use tidegate_model::TableName;
use tidegate_postgres::{
    NewPublication, TypeShape, alter_publication_set_tables, create_publication, drop_publication, existing,
    publication, publication_content, relation_columns, tables, type_info,
};

use crate::launcher::Server;

#[tokio::test]
async fn the_catalog_is_read() {
    let server = Server::start(&[]);
    server
        .sql(
            "CREATE TYPE public.mood AS ENUM ('sad', 'ok'); CREATE DOMAIN public.small AS int; CREATE DOMAIN public.tiny AS public.small;
             CREATE TYPE public.span AS RANGE (subtype = float8); CREATE TYPE public.pair AS (a int, b text);
             CREATE TABLE public.t (a int, b public.tiny[], c public.mood, d public.span NOT NULL, e public.pair, f int2vector, g box[],
                 h varchar(7), i public.tiny, j int GENERATED ALWAYS AS (1) STORED, PRIMARY KEY (d, a) INCLUDE (h));
             ALTER TABLE public.t DROP COLUMN e;
             CREATE TABLE public.p (k int PRIMARY KEY DEFERRABLE) PARTITION BY RANGE (k);
             CREATE TABLE public.p1 PARTITION OF public.p FOR VALUES FROM (0) TO (9);
             CREATE UNLOGGED TABLE public.u (k int NOT NULL UNIQUE); ALTER TABLE public.u REPLICA IDENTITY USING INDEX u_k_key;",
        )
        .await;
    let session = server.session().await;
    let all = tables(&session).await.expect("tables");
    let find = |name: &str| all.iter().find(|table| table.name == TableName::new("public", name)).expect("the table");
    assert_eq!(find("t").primary_key, [4, 1]);
    assert!(find("p").primary_key_deferrable && !find("p1").has_replica_identity());
    assert_eq!((find("p1").root_oid, find("p1").is_leaf()), (Some(find("p").oid), true));
    assert!(find("u").has_replica_identity() && find("u").identity_index == [1]);

    let columns = relation_columns(&session, find("t").oid).await.expect("columns");
    let shapes: Vec<_> =
        columns.iter().map(|column| (column.name.as_str(), column.base_type_oid, column.shape)).collect();
    let mood = columns[2].type_oid;
    let expected = [
        ("a", 23, TypeShape::Base),
        ("b", columns[1].type_oid, TypeShape::Array { element_oid: 23, delimiter: b',' }),
        ("c", mood, TypeShape::Enum),
        ("d", columns[3].type_oid, TypeShape::Range { subtype_oid: 701 }),
        ("f", 22, TypeShape::Base),
        ("g", 1020, TypeShape::Array { element_oid: 603, delimiter: b';' }),
        ("h", 1043, TypeShape::Base),
        ("i", 23, TypeShape::Base),
        ("j", 23, TypeShape::Base),
    ];
    assert_eq!(shapes, expected);
    assert_eq!((columns[2].type_name.as_str(), columns[6].type_name.as_str()), ("public.mood", "character varying(7)"));
    let keys: Vec<_> = columns.iter().filter(|column| column.in_identity).map(|column| column.name.as_str()).collect();
    assert_eq!((keys, columns[8].generated, columns[3].not_null), (vec!["a", "d"], true, true));
    let info = type_info(&session, &[columns[7].type_oid, 0, mood]).await.expect("types");
    assert_eq!(
        info.iter().map(|info| info.shape).collect::<Vec<_>>(),
        [TypeShape::Domain { base_oid: 23 }, TypeShape::Enum]
    );
}

#[tokio::test]
async fn publications_live() {
    let server = Server::start(&[]);
    server
        .sql("CREATE TABLE public.\"A b\" (k int PRIMARY KEY, v text); CREATE TABLE public.c (k int PRIMARY KEY)")
        .await;
    let session = server.session().await;
    let (first, second) = (TableName::new("public", "A b"), TableName::new("public", "c"));
    assert_eq!(publication(&session, "p q").await.expect("no error"), None);
    let new = NewPublication { name: "p q", tables: std::slice::from_ref(&first), via_root: true };
    create_publication(&session, &new).await.expect("a publication");
    let read = async || publication(&session, "p q").await.expect("no error").expect("a publication");
    let made = read().await;
    assert!(made.via_root && !made.all_tables && made.operations.missing().count() == 0);
    assert_eq!((&made.tables[0].name, made.tables[0].columns.join(",").as_str()), (&first, "k,v"));
    let set = async |tables: &[TableName]| {
        alter_publication_set_tables(&session, "p q", tables).await.expect("an altered publication");
    };
    set(std::slice::from_ref(&second)).await;
    assert_eq!(read().await.tables.iter().map(|table| &table.name).collect::<Vec<_>>(), [&second]);
    let content =
        async || publication_content(&session, "p q").await.expect("no error").expect("a publication").content;
    let before = content().await;
    assert_eq!(before.lines().count(), 2, "{before}");
    server.sql("ALTER PUBLICATION \"p q\" ADD TABLE public.\"A b\"").await;
    server.sql("VACUUM FREEZE pg_publication").await;
    let added = content().await;
    assert!(added.lines().count() == 3 && before.lines().all(|line| added.lines().any(|now| now == line)), "{added}");
    server.sql("ALTER PUBLICATION \"p q\" SET (publish = 'insert')").await;
    server.sql("ALTER PUBLICATION \"p q\" SET (publish = 'insert, update, delete, truncate')").await;
    let switched = content().await;
    assert_ne!(
        added.lines().find(|line| line.starts_with("options")),
        switched.lines().find(|line| line.starts_with("options"))
    );
    assert_eq!(
        existing(&session, &[made.tables[0].oid, 1], &[2200]).await.expect("names"),
        ["schema public", "table public.\"A b\""]
    );
    set(&[]).await;
    assert!(read().await.tables.is_empty());
    drop_publication(&session, "p q").await.expect("no error");
    assert_eq!(publication(&session, "p q").await.expect("no error"), None);
}
