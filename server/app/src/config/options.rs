//! Every option, described once.
//!
//! From this table come the defaults, the check for unknown keys, the reading of values, and the reference in
//! `server/docs/configuration.md`. A test holds the typed `Config` to it in both directions.
//!
//! It deliberately knows nothing of files and environments.

use super::value::Kind;

/// One option.
#[derive(Debug)]
pub(crate) struct Opt {
    /// Where it stands, such as `sources.<name>.slot`; `<name>`, as all in such brackets, is chosen by the user.
    pub(crate) path: &'static str,
    /// What may be written.
    pub(crate) kind: Kind,
    /// Value where nothing is written, in the form of an environment variable; `<name>` stands for the source's name.
    pub(crate) default: Option<&'static str>,
    /// One or two sentences, in Markdown.
    pub(crate) about: &'static str,
}

const fn opt(path: &'static str, kind: Kind, default: Option<&'static str>, about: &'static str) -> Opt {
    Opt { path, kind, default, about }
}

/// All of them, in the order of the reference.
pub(crate) const OPTIONS: &[Opt] = &[
    opt(
        "listen.grpc",
        Kind::Address,
        Some("127.0.0.1:7171"),
        "Address and port of the gRPC services. Beyond loopback it needs `tls` with `client_ca`, or `insecure: true`.",
    ),
    opt(
        "listen.http",
        Kind::Address,
        Some("127.0.0.1:7172"),
        "Address and port of `/metrics`, `/health/live` and `/health/ready`. They hold no rows and no credentials, and \
         are plain HTTP on any address.",
    ),
    opt(
        "insecure",
        Kind::Switch,
        Some("false"),
        "Serve gRPC beyond loopback although connections are not encrypted, or clients not authenticated. For networks \
         in which everyone may read everything.",
    ),
    opt("tls.certificate", Kind::Path, None, "File with the server's certificate chain, PEM."),
    opt("tls.key", Kind::Path, None, "File with the certificate's private key, PEM."),
    opt(
        "tls.client_ca",
        Kind::Path,
        None,
        "File with the authorities, PEM, that clients' certificates must be signed by. Without it any client may connect.",
    ),
    opt(
        "data_dir",
        Kind::Path,
        Some("/var/lib/tidegate"),
        "Folder of the changelogs, one folder a source. Put it on a disk that survives restarts.",
    ),
    opt(
        "control.url",
        Kind::Secret,
        None,
        "Database in which Tidegate keeps what it must remember, in the schema `tidegate`. Default: the only source. \
         Required with several sources.",
    ),
    opt(
        "control.url_file",
        Kind::Path,
        None,
        "File that holds the same, such as a mounted secret. It is read again at each connection, so a rotated password needs no restart.",
    ),
    opt(
        "sources.<name>.url",
        Kind::Secret,
        None,
        "The database to capture: `postgres://user:password@host:port/database?sslmode=verify-full&sslrootcert=…`. \
         `<name>` is yours to choose: `a-z`, `0-9` and `_`.",
    ),
    opt(
        "sources.<name>.url_file",
        Kind::Path,
        None,
        "File that holds the same, such as a mounted secret. It is read again at each connection, so a rotated password needs no restart.",
    ),
    opt(
        "sources.<name>.tables",
        Kind::List,
        Some("*.*"),
        "Tables to capture, as names or patterns: `orders`, `shop.*`, `\"Mixed Case\".*`, and `\"!public.audit_*\"` to \
         leave some out. YAML needs quotes around what begins with `*` or `!`, and around names such as `n`, `y`, `no` and `on`, which \
         are booleans to it.",
    ),
    opt(
        "sources.<name>.mirror",
        Kind::List,
        Some(""),
        "Tables of which the server keeps the current rows on its own disk, as names or patterns like those of `tables`. \
         Their updates and deletes have whole old rows and complete values without `REPLICA IDENTITY \
         FULL`. They need a key, and are read once, by a snapshot that starts by itself; `tidegate status` shows how far \
         it is.",
    ),
    opt(
        "sources.<name>.mirror_on_demand",
        Kind::List,
        Some("*.*"),
        "Tables that are mirrored besides those of `mirror` once a shape needs their rows, as names or patterns. From then on they stay so, over \
         restarts too, until they are left out here. Write `[]` for none: shapes of other tables are then refused.",
    ),
    opt(
        "sources.<name>.mirror_check",
        Kind::Duration,
        Some("1s"),
        "How often the definitions of mirrored tables are read from the catalog, in one query for all, to find schema changes that \
         have changed rows in silence. Longer where it takes longer, so that it is at most a twentieth of the time. With `tidegate ddl install` \
         most schema changes are found when they come, whatever this is.",
    ),
    opt(
        "sources.<name>.slot",
        Kind::Text,
        Some("tidegate_<name>"),
        "Replication slot. It is created where it is missing; `tidegate source drop` removes it.",
    ),
    opt(
        "sources.<name>.publication",
        Kind::Text,
        Some("tidegate_<name>"),
        "Publication. It is created where it is missing and may be created; else see `tidegate check --sql`.",
    ),
    opt(
        "sources.<name>.new_tables",
        Kind::Choice(&["publish", "snapshot", "follow"]),
        Some("publish"),
        "What happens to a table that appears and matches `tables`. `publish` adds it to the publication, if Tidegate has \
         made that itself and may, and goes on as `snapshot`, which has what joins the publication read by a snapshot that \
         starts by itself and that every subscription receives that selects the table. `follow`: its changes only, from when \
         someone has added it. `tidegate status` names the tables that are not published, and says why.",
    ),
    opt(
        "sources.<name>.on_discontinuity",
        Kind::Choice(&["reset", "stop"]),
        Some("reset"),
        "What to do when changes may have been missed, as when the slot was dropped, or when a transaction cannot be \
         delivered (a row beyond PostgreSQL's limit of 1 GiB, text that is not valid in its encoding): `reset` tells every \
         subscriber and starts a new history, behind that transaction if there is one; `stop` waits for a person.",
    ),
    opt(
        "sources.<name>.memory.transactions",
        Kind::Size,
        Some("64MiB"),
        "Memory for transactions that are still in progress in PostgreSQL. What exceeds it is kept on disk.",
    ),
    opt(
        "sources.<name>.memory.feed",
        Kind::Size,
        Some("8MiB"),
        "Memory for changes on their way to the changelog. While it is full, PostgreSQL is not read.",
    ),
    opt(
        "sources.<name>.memory.tail",
        Kind::Size,
        Some("64MiB"),
        "Memory for the newest changes, from which all subscribers that keep up are served. The others read the disk.",
    ),
    opt(
        "sources.<name>.memory.mirror",
        Kind::Size,
        Some("192MiB"),
        "Memory for the mirror, where there is one: a third for what is not on the disk yet, the rest for what has been \
         read from it.",
    ),
    opt(
        "sources.<name>.snapshots.readers",
        Kind::Count,
        Some("2"),
        "Chunks of tables that are read at the same time when a subscription starts from a snapshot.",
    ),
    opt(
        "sources.<name>.snapshots.rows_per_second",
        Kind::Count,
        Some("0"),
        "Rows that snapshots read a second, at most; 0 for no limit. It is kept between chunks, never within one.",
    ),
    opt(
        "sources.<name>.snapshots.lag",
        Kind::Size,
        Some("64MiB"),
        "While capture is further than this behind PostgreSQL's WAL, snapshots read nothing; 0 for no limit.",
    ),
    opt(
        "sources.<name>.shapes.<shape>.table",
        Kind::Text,
        None,
        "Table of a named shape, which is selected by `<shape>`, a name of `a-z`, `0-9` and `_` that is yours to choose. What is \
         declared here cannot be changed over gRPC; shapes that are (`tidegate shape define`) stand in the control database. \
         `tidegate shape show` says whether it fits its table.",
    ),
    opt(
        "sources.<name>.shapes.<shape>.where",
        Kind::Text,
        None,
        "Condition on the table's columns, as in [predicates.md](predicates.md). Default: all rows.",
    ),
    opt(
        "sources.<name>.shapes.<shape>.parameters",
        Kind::List,
        None,
        "Types of `$1`, `$2` and so on in `where`, such as `[bigint, text]`. Whoever selects the shape gives the values.",
    ),
    opt(
        "sources.<name>.shapes.<shape>.columns",
        Kind::List,
        None,
        "Only these columns, besides the key, by exact name. Default: all.",
    ),
    opt(
        "sources.<name>.shapes.<shape>.updates",
        Kind::Choice(&["full_row", "changed_columns"]),
        None,
        "What an update of a row that stays in the shape holds: every column, which is the default, or the key and what has changed.",
    ),
    opt(
        "retention.size",
        Kind::Size,
        Some("50GiB"),
        "Size of each source's changelog. The oldest changes go first; a subscriber that still needs them is reset.",
    ),
    opt("retention.age", Kind::Duration, Some("7d"), "Age of the oldest changes kept, whatever their size."),
    opt(
        "log.format",
        Kind::Choice(&["text", "json"]),
        Some("text"),
        "How log lines are written: for people, or one JSON object a line.",
    ),
    opt(
        "log.filter",
        Kind::Text,
        Some("info,refinery_core=warn,tokio_postgres=warn"),
        "What is logged: `error`, `warn`, `info`, `debug`, `trace`, or by module as in `info,tidegate_capture=debug`.",
    ),
    opt(
        "shutdown_deadline",
        Kind::Duration,
        Some("25s"),
        "Time for an orderly shutdown, in which subscribers are asked to leave. Keep it below the orchestrator's grace \
         period.",
    ),
];

/// The option at a path, in which a source's own name may stand for `<name>`.
pub(crate) fn find(path: &[&str]) -> Option<&'static Opt> {
    OPTIONS.iter().find(|option| matches(option.path.split('.'), path) == Some(0))
}

/// Is the path that of a group of options?
pub(crate) fn is_group(path: &[&str]) -> bool {
    OPTIONS.iter().any(|option| matches(option.path.split('.'), path).is_some_and(|rest| rest > 0))
}

/// The keys that may stand below a group, in the table's order; `<name>` where any name may.
pub(crate) fn keys_below(path: &[&str]) -> Vec<&'static str> {
    let mut keys: Vec<&'static str> = Vec::new();
    for option in OPTIONS {
        if matches(option.path.split('.'), path).is_some_and(|rest| rest > 0)
            && let Some(key) = option.path.split('.').nth(path.len())
            && !keys.contains(&key)
        {
            keys.push(key);
        }
    }
    keys
}

/// Does the user choose what stands there?
pub(crate) fn is_placeholder(segment: &str) -> bool {
    segment.starts_with('<')
}

/// How many segments of the option's path are left behind the given one; None where they differ.
fn matches<'a>(option: impl Iterator<Item = &'a str> + Clone, path: &[&str]) -> Option<usize> {
    let mut segments = option;
    for given in path {
        let segment = segments.next()?;
        if segment != *given && !is_placeholder(segment) {
            return None;
        }
    }
    Some(segments.count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_sources_and_shapes_stand_for_any() {
        let table = find(&["sources", "shop", "shapes", "open_orders", "table"]).map(|o| o.path);
        assert_eq!(table, Some("sources.<name>.shapes.<shape>.table"));
        assert_eq!(find(&["sources", "shop", "slot"]).map(|o| o.path), Some("sources.<name>.slot"));
        assert!(is_group(&["sources", "shop"]) && is_group(&[]) && !is_group(&["data_dir"]));
        assert!(find(&["sources", "shop"]).is_none());
        assert_eq!(keys_below(&["sources"]), ["<name>"]);
        assert_eq!(keys_below(&["listen"]), ["grpc", "http"]);
    }
}
