//! Findings about the publication and the tables. Pure.
//!
//! The dangerous one: PostgreSQL lets the *application's* UPDATE and DELETE fail on a published table that has no replica
//! identity. So that is found before the publication is made.

use std::collections::{HashMap, HashSet};

use tidegate_model::{ReplicaIdentity, TableName};

use super::{CheckRequest, Finding};
use crate::{
    Persistence, Publication, ServerFacts, TableInfo, TableKind,
    publication::{qualified, quoted},
};

/// Findings name so many tables at most.
const NAMED_TABLES: usize = 10;

pub(super) fn findings(
    facts: &ServerFacts,
    request: &CheckRequest,
    publication: Option<&Publication>,
    tables: &[TableInfo],
) -> Vec<Finding> {
    let followed = followed(request, tables);
    let mut findings = missing_tables(request, tables);
    findings.extend(not_in_the_wal(request, tables));
    findings.extend(inherited(&followed));
    findings.extend(without_identity(publication, &followed));
    findings.extend(unreadable(facts, &followed));
    match publication {
        Some(publication) => findings.extend(existing_publication(request, publication, &followed)),
        None => findings.extend(new_publication(facts, request, &followed)),
    }
    findings
}

/// The tables that patterns select and PostgreSQL can publish: roots and ordinary tables, with the leaves of followed roots.
pub(super) fn followed<'a>(request: &CheckRequest, tables: &'a [TableInfo]) -> Vec<&'a TableInfo> {
    let by_oid: HashMap<u32, &TableInfo> = tables.iter().map(|table| (table.oid, table)).collect();
    let selected = |table: &TableInfo| {
        let root = table.root_oid.and_then(|oid| by_oid.get(&oid));
        request.patterns.matches(&table.name) || root.is_some_and(|root| request.patterns.matches(&root.name))
    };
    let publishable =
        |table: &TableInfo| table.kind != TableKind::Foreign && table.persistence == Persistence::Permanent;
    tables.iter().filter(|table| publishable(table) && selected(table)).collect()
}

/// Names to be read by a person, not too many.
fn names<'a>(tables: impl IntoIterator<Item = &'a TableName>) -> String {
    let all: Vec<String> = tables.into_iter().map(ToString::to_string).collect();
    match all.get(..NAMED_TABLES) {
        Some(first) if all.len() > NAMED_TABLES => {
            format!("{} and {} more", first.join(", "), all.len() - NAMED_TABLES)
        }
        Some(_) | None => all.join(", "),
    }
}

/// Statements for each table, to be pasted.
fn statements(tables: &[&TableInfo], statement: impl Fn(&str) -> String) -> String {
    let each: Vec<String> = tables.iter().take(NAMED_TABLES).map(|table| statement(&qualified(&table.name))).collect();
    let more = if tables.len() > NAMED_TABLES { " … and likewise for the others" } else { "" };
    each.join("; ") + more
}

fn missing_tables(request: &CheckRequest, tables: &[TableInfo]) -> Vec<Finding> {
    let existing: HashSet<&TableName> = tables.iter().map(|table| &table.name).collect();
    let exact: Vec<TableName> = request.patterns.exact_names().collect();
    let missing: Vec<&TableName> = exact.iter().filter(|name| !existing.contains(*name)).collect();
    let mut findings = Vec::new();
    if !missing.is_empty() {
        findings.push(Finding::error(
            "table_missing",
            format!("there is no table {}", names(missing.iter().copied())),
            "correct the name under tables (upper case needs \"double quotes\"), or create the table",
        ));
    }
    for (text, matches) in request.patterns.included() {
        let is_exact = text.parse::<TableName>().is_ok();
        if !is_exact && !tables.iter().any(|table| matches(&table.name)) {
            findings.push(Finding::warning(
                "pattern_matches_nothing",
                format!("no table matches '{text}'"),
                "correct the pattern under tables, or create the tables",
            ));
        }
    }
    findings
}

/// Tables that were asked for but whose rows never reach the WAL.
fn not_in_the_wal(request: &CheckRequest, tables: &[TableInfo]) -> Vec<Finding> {
    let exact: HashSet<TableName> = request.patterns.exact_names().collect();
    let selected = |table: &&TableInfo| request.patterns.matches(&table.name);
    let kind = |table: &TableInfo| match (table.kind, table.persistence) {
        (TableKind::Foreign, _) => Some("a foreign table"),
        (TableKind::Ordinary | TableKind::Partitioned, Persistence::Unlogged) => Some("unlogged"),
        (TableKind::Ordinary | TableKind::Partitioned, Persistence::Temporary) => Some("temporary"),
        (TableKind::Ordinary | TableKind::Partitioned, Persistence::Permanent) => None,
    };
    let mut findings = Vec::new();
    for table in tables.iter().filter(selected) {
        let Some(kind) = kind(table) else { continue };
        let problem = format!("{} is {kind}: its changes are not in the WAL", table.name);
        let mend = format!("leave it out with !{}, or make it an ordinary table", table.name);
        match (exact.contains(&table.name), table.persistence) {
            (true, _) => findings.push(Finding::error("table_unsupported", problem, mend)),
            (false, Persistence::Permanent | Persistence::Unlogged) => {
                findings.push(Finding::warning("table_unsupported", problem, mend));
            }
            // Temporary tables come and go; nobody means them with a pattern.
            (false, Persistence::Temporary) => {}
        }
    }
    findings
}

/// Tables that inherit from others: what `SELECT` shows of the parent comes under several names.
fn inherited(followed: &[&TableInfo]) -> Option<Finding> {
    let inheriting: Vec<&TableName> = followed.iter().filter(|table| table.inherits).map(|table| &table.name).collect();
    if inheriting.is_empty() {
        return None;
    }
    Some(Finding::info(
        "inherited_tables",
        format!(
            "{} inherit from other tables: each is a table of its own, whose rows come under its own name and never under its \
             parent's",
            names(inheriting)
        ),
        "nothing, if that is meant; else make the parent a partitioned table, or leave the tables out",
    ))
}

fn without_identity(publication: Option<&Publication>, followed: &[&TableInfo]) -> Vec<Finding> {
    if publication.is_some_and(|publication| !publication.operations.update && !publication.operations.delete) {
        return Vec::new();
    }
    // What is not in a publication that exists harms nobody.
    let is_meant = |table: &TableInfo| publication.is_none_or(|publication| is_published(table, publication));
    let lacking = followed
        .iter()
        .filter(|table| table.kind == TableKind::Ordinary && !table.has_replica_identity() && is_meant(table));
    let (deferrable, without): (Vec<&TableInfo>, Vec<&TableInfo>) =
        lacking.partition(|table| table.primary_key_deferrable && table.replica_identity == ReplicaIdentity::Default);
    let mut findings = Vec::new();
    if !without.is_empty() {
        findings.push(Finding::error(
            "no_replica_identity",
            format!(
                "published tables without primary key or replica identity: the application's own UPDATE and DELETE fail \
                 on {}",
                names(without.iter().map(|table| &table.name))
            ),
            format!(
                "add a primary key, or run {}, or leave the tables out",
                statements(&without, |table| format!("ALTER TABLE {table} REPLICA IDENTITY FULL"))
            ),
        ));
    }
    if !deferrable.is_empty() {
        findings.push(Finding::error(
            "deferrable_primary_key",
            format!(
                "a deferrable primary key identifies no rows in the WAL: the application's own UPDATE and DELETE fail on {}",
                names(deferrable.iter().map(|table| &table.name))
            ),
            format!(
                "make the key NOT DEFERRABLE, or run {}, which leaves the table without a key in the stream",
                statements(&deferrable, |table| format!("ALTER TABLE {table} REPLICA IDENTITY FULL"))
            ),
        ));
    }
    findings
}

fn unreadable(facts: &ServerFacts, followed: &[&TableInfo]) -> Option<Finding> {
    let tables: Vec<&TableInfo> = followed.iter().copied().filter(|table| !table.readable).collect();
    if tables.is_empty() {
        return None;
    }
    let role = quoted(&facts.role);
    Some(Finding::warning(
        "select_privilege",
        format!(
            "role {role} may not read {}: changes arrive, snapshots of the tables do not",
            names(tables.iter().map(|table| &table.name))
        ),
        statements(&tables, |table| format!("GRANT SELECT ON {table} TO {role}")) + ", and USAGE on their schemas",
    ))
}

fn existing_publication(request: &CheckRequest, publication: &Publication, followed: &[&TableInfo]) -> Vec<Finding> {
    let name = quoted(&request.publication);
    let mut findings = Vec::new();
    let missing: Vec<&str> = publication.operations.missing().collect();
    if !missing.is_empty() {
        findings.push(Finding::warning(
            "publication_operations",
            format!("publication {name} leaves out {}: subscribers will not see them", missing.join(", ")),
            format!("ALTER PUBLICATION {name} SET (publish = 'insert, update, delete, truncate')"),
        ));
    }
    let filtered: Vec<&TableName> =
        publication.tables.iter().filter(|table| table.has_row_filter).map(|table| &table.name).collect();
    if !filtered.is_empty() {
        findings.push(Finding::warning(
            "publication_row_filter",
            format!("publication {name} filters the rows of {}", names(filtered)),
            "nothing, if that is meant; else add the tables again without WHERE",
        ));
    }
    findings.extend(not_in_the_publication(publication, &name, followed));
    findings
}

/// A partition is published by itself or by its root.
fn is_published(table: &TableInfo, publication: &Publication) -> bool {
    publication.tables.iter().any(|published| published.oid == table.oid || Some(published.oid) == table.root_oid)
}

/// Tables that the publication lacks: those that a running server adds by itself, those that someone has to add, and those that
/// must not be added as they are.
fn not_in_the_publication(publication: &Publication, name: &str, followed: &[&TableInfo]) -> Vec<Finding> {
    let lacking =
        followed.iter().filter(|table| table.kind == TableKind::Ordinary && !is_published(table, publication));
    let (ready, keyless): (Vec<&TableInfo>, Vec<&TableInfo>) =
        lacking.copied().partition(|table| table.has_replica_identity());
    let is_ours = |table: &&TableInfo| publication.made_by_us && publication.owned && table.owned && !table.inherits;
    let (added, left): (Vec<&TableInfo>, Vec<&TableInfo>) = ready.into_iter().partition(is_ours);
    let list = |tables: &[&TableInfo]| tables.iter().map(|table| qualified(&table.name)).collect::<Vec<_>>().join(", ");
    let named = |tables: &[&TableInfo]| names(tables.iter().map(|table| &table.name));
    let mut findings = Vec::new();
    if !left.is_empty() {
        findings.push(Finding::warning(
            "publication_lacks_tables",
            format!("publication {name} does not hold {}", named(&left)),
            format!("ALTER PUBLICATION {name} ADD TABLE {}", list(&left)),
        ));
    }
    if !keyless.is_empty() {
        findings.push(Finding::warning(
            "unpublished_without_identity",
            format!("without a replica identity, and so not published: {}", named(&keyless)),
            "add a primary key that is not deferrable, or run ALTER TABLE … REPLICA IDENTITY FULL, or leave the tables out",
        ));
    }
    if !added.is_empty() {
        findings.push(Finding::info(
            "tables_to_be_added",
            format!("publication {name} does not hold {} yet", named(&added)),
            "nothing: `tidegate serve` adds them by itself, unless `new_tables` says otherwise",
        ));
    }
    findings
}

fn new_publication(facts: &ServerFacts, request: &CheckRequest, followed: &[&TableInfo]) -> Vec<Finding> {
    let (role, name) = (quoted(&facts.role), quoted(&request.publication));
    let ask = "or let an owner create the publication: `tidegate check --sql` prints the statements";
    let mut findings = Vec::new();
    if !facts.can_create {
        let database = quoted(&facts.database);
        findings.push(Finding::error(
            "publication_privilege",
            format!("publication {name} does not exist and role {role} may not create it"),
            format!("GRANT CREATE ON DATABASE {database} TO {role}, {ask}"),
        ));
    }
    let foreign: Vec<&TableName> = followed.iter().filter(|table| !table.owned).map(|table| &table.name).collect();
    if !foreign.is_empty() {
        findings.push(Finding::error(
            "table_ownership",
            format!(
                "publication {name} does not exist, and role {role} cannot publish tables of others: {}",
                names(foreign)
            ),
            format!("make {role} a member of the tables' owners, {ask}"),
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Operations, PublishedTable, preflight::server::tests::ready};
    use tidegate_model::TablePatterns;

    fn table(oid: u32, name: &str) -> TableInfo {
        TableInfo {
            oid,
            name: TableName::new("public", name),
            kind: TableKind::Ordinary,
            persistence: Persistence::Permanent,
            root_oid: None,
            replica_identity: ReplicaIdentity::Default,
            primary_key: vec![1],
            primary_key_deferrable: false,
            identity_index: Vec::new(),
            owned: true,
            readable: true,
            inherits: false,
        }
    }

    fn published(tables: &[(u32, &str)]) -> Publication {
        let table = |&(oid, name): &(u32, &str)| PublishedTable {
            name: TableName::new("public", name),
            oid,
            has_row_filter: false,
            columns: Vec::new(),
        };
        let operations = Operations { insert: true, update: true, delete: true, truncate: true };
        let tables = tables.iter().map(table).collect();
        let (made_by_us, owned) = (false, true);
        Publication { oid: 1, all_tables: false, via_root: true, operations, tables, made_by_us, owned }
    }

    fn codes(patterns: &[&str], publication: Option<&Publication>, tables: &[TableInfo]) -> Vec<&'static str> {
        let patterns = TablePatterns::parse(patterns).expect("valid patterns");
        let request = CheckRequest { slot: "s".to_owned(), publication: "p".to_owned(), patterns };
        findings(&ready(), &request, publication, tables).iter().map(|finding| finding.code).collect()
    }

    #[test]
    fn tables_that_are_ready_have_no_findings() {
        assert_eq!(codes(&["public.*"], None, &[table(1, "a")]), Vec::<&str>::new());
        assert_eq!(codes(&["public.*"], Some(&published(&[(1, "a")])), &[table(1, "a")]), Vec::<&str>::new());
    }

    #[test]
    fn a_table_without_identity_is_an_error_before_it_is_published() {
        let keyless = TableInfo { primary_key: Vec::new(), ..table(1, "a") };
        let deferrable = TableInfo { primary_key_deferrable: true, ..table(2, "b") };
        let full = TableInfo { replica_identity: ReplicaIdentity::Full, ..keyless.clone() };
        assert_eq!(codes(&["public.*"], None, std::slice::from_ref(&keyless)), ["no_replica_identity"]);
        assert_eq!(codes(&["public.*"], None, &[deferrable]), ["deferrable_primary_key"]);
        assert_eq!(codes(&["public.*"], None, &[full]), Vec::<&str>::new());
        let mut insert_only = published(&[(1, "a")]);
        insert_only.operations = Operations { insert: true, update: false, delete: false, truncate: true };
        assert_eq!(codes(&["public.*"], Some(&insert_only), &[keyless]), ["publication_operations"]);
    }

    #[test]
    fn tables_that_appear_are_told_apart_by_who_adds_them() {
        let (fine, keyless) = (table(1, "a"), TableInfo { primary_key: Vec::new(), ..table(2, "b") });
        let others = published(&[]);
        let ours = Publication { made_by_us: true, ..others.clone() };
        let codes = |publication: &Publication, table: &TableInfo| {
            codes(&["public.*"], Some(publication), std::slice::from_ref(table))
        };
        assert_eq!(codes(&others, &fine), ["publication_lacks_tables"]);
        assert_eq!(codes(&ours, &fine), ["tables_to_be_added"]);
        assert_eq!(codes(&ours, &keyless), ["unpublished_without_identity"]);
        let foreign = TableInfo { owned: false, ..fine };
        assert_eq!(codes(&ours, &foreign), ["publication_lacks_tables"]);
    }

    #[test]
    fn leaves_count_with_their_root() {
        let root = TableInfo { kind: TableKind::Partitioned, ..table(1, "a") };
        let leaf = TableInfo { root_oid: Some(1), primary_key: Vec::new(), ..table(2, "a_1") };
        assert_eq!(codes(&["a"], None, &[root.clone(), leaf.clone()]), ["no_replica_identity"]);
        let leaf = TableInfo { primary_key: vec![1], ..leaf };
        assert_eq!(codes(&["a"], Some(&published(&[(1, "a")])), &[root.clone(), leaf.clone()]), Vec::<&str>::new());
        assert_eq!(codes(&["a"], Some(&published(&[])), &[root, leaf]), ["publication_lacks_tables"]);
    }

    #[test]
    fn names_and_patterns_without_tables_are_found() {
        assert_eq!(codes(&["orders"], None, &[]), ["table_missing"]);
        assert_eq!(codes(&["shop.*"], None, &[table(1, "a")]), ["pattern_matches_nothing"]);
    }

    #[test]
    fn tables_outside_of_the_wal_are_found() {
        let unlogged = TableInfo { persistence: Persistence::Unlogged, ..table(1, "a") };
        let foreign = TableInfo { kind: TableKind::Foreign, ..table(2, "b") };
        let temporary = TableInfo { persistence: Persistence::Temporary, ..table(3, "c") };
        assert_eq!(codes(&["public.*"], None, &[unlogged, foreign, temporary.clone()]), ["table_unsupported"; 2]);
        // Nobody means a temporary table by a pattern; who names it is told.
        assert_eq!(codes(&["public.*"], None, std::slice::from_ref(&temporary)), Vec::<&str>::new());
        assert_eq!(codes(&["c"], None, &[temporary]), ["table_unsupported"]);
    }

    #[test]
    fn tables_that_inherit_are_named() {
        let child = TableInfo { inherits: true, ..table(2, "b") };
        assert_eq!(codes(&["public.*"], None, &[table(1, "a"), child.clone()]), ["inherited_tables"]);
        assert_eq!(codes(&["a"], None, &[table(1, "a"), child]), Vec::<&str>::new());
    }

    #[test]
    fn missing_privileges_are_found() {
        let others = TableInfo { owned: false, readable: false, ..table(1, "a") };
        assert_eq!(codes(&["public.*"], None, std::slice::from_ref(&others)), ["select_privilege", "table_ownership"]);
        assert_eq!(codes(&["public.*"], Some(&published(&[(1, "a")])), &[others]), ["select_privilege"]);
    }
}
