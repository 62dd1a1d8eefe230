//! The configuration: YAML and environment in, a checked `Config` out.
//!
//! ```text
//! options (each described once) ──▶ reference (server/docs/configuration.md)
//!    │
//! file + environment ──▶ layers ──▶ Config ──▶ serve, check, source
//! ```
//!
//! Invariant: secrets are held in `SecretString` and appear in no message, log line or debug output.
//! It deliberately opens no connection: whether a database can be captured is `check`'s question.

mod layers;
mod options;
mod problem;
pub(crate) mod reference;
mod shape;
mod value;

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer};
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};
use tidegate_gateway::KnownShapes;
use tidegate_model::{SourceName, TablePatterns};
use tidegate_postgres::{ConnectConfig, ConnectError};

use layers::Layers;
pub(crate) use problem::ConfigError;
use problem::Problem;
use shape::WrittenShape;

/// All that the server needs to know.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) listen: Listen,
    pub(crate) tls: Option<Tls>,
    pub(crate) data_dir: PathBuf,
    /// Where the control schema lives.
    pub(crate) control: ConnectConfig,
    pub(crate) sources: Vec<Source>,
    pub(crate) retention: Retention,
    pub(crate) log: Log,
    pub(crate) shutdown_deadline: Duration,
}

/// Addresses to serve on.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Listen {
    pub(crate) grpc: SocketAddr,
    pub(crate) http: SocketAddr,
}

/// Server TLS, from files.
#[derive(Clone, Debug)]
pub(crate) struct Tls {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    /// Clients must show a certificate of these authorities.
    pub(crate) client_ca: Option<PathBuf>,
}

/// One database.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) name: SourceName,
    pub(crate) connect: ConnectConfig,
    pub(crate) tables: TablePatterns,
    /// Tables to be mirrored.
    pub(crate) mirror: TablePatterns,
    /// Tables to be mirrored when they are needed.
    pub(crate) mirror_on_demand: TablePatterns,
    pub(crate) mirror_check: Duration,
    pub(crate) slot: String,
    pub(crate) publication: String,
    pub(crate) new_tables: NewTables,
    pub(crate) on_discontinuity: OnDiscontinuity,
    pub(crate) memory: Memory,
    pub(crate) snapshots: Snapshots,
    /// Those that are declared.
    pub(crate) shapes: KnownShapes,
}

/// What happens to a table that appears.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum NewTables {
    /// It is published, and read.
    Publish,
    /// It is read, once it is published.
    Snapshot,
    /// It is captured, once it is published.
    Follow,
}

/// What to do when continuity is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OnDiscontinuity {
    /// Tell subscribers, start a new history.
    Reset,
    /// Wait for a person.
    Stop,
}

/// Bounds in bytes.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Memory {
    #[serde(rename = "transactions")]
    pub(crate) transaction_bytes: usize,
    #[serde(rename = "feed")]
    pub(crate) feed_bytes: usize,
    #[serde(rename = "tail")]
    pub(crate) tail_bytes: usize,
    #[serde(rename = "mirror")]
    pub(crate) mirror_bytes: usize,
}

/// How the rows that tables have already are read.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Snapshots {
    pub(crate) readers: usize,
    #[serde(rename = "rows_per_second")]
    pub(crate) rows_per_second_max: u64,
    #[serde(rename = "lag")]
    pub(crate) lag_bytes_max: u64,
}

/// How much history each source keeps.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Retention {
    #[serde(rename = "size")]
    pub(crate) size_bytes: u64,
    #[serde(deserialize_with = "milliseconds")]
    pub(crate) age: Duration,
}

/// How log lines are written.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Log {
    pub(crate) format: LogFormat,
    /// In the syntax of tracing-subscriber's `EnvFilter`.
    pub(crate) filter: String,
}

/// For people or for machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// A line of text.
    Text,
    /// A JSON object a line.
    Json,
}

impl Config {
    /// Reads the file, if there is one, and the process's environment.
    ///
    /// # Errors
    /// All that is wrong, each with its place and the next step.
    pub(crate) fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        let text = match file.map(|file| (file, std::fs::read_to_string(file))) {
            None => None,
            Some((file, Ok(text))) => Some((file.display().to_string(), text)),
            Some((file, Err(error))) => {
                let problem = Problem::Unreadable { file: file.display().to_string(), reason: error.to_string() };
                return Err(ConfigError { problems: vec![problem] });
            }
        };
        let environment: Vec<(String, String)> =
            std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect();
        Self::read(text.as_ref().map(|(file, text)| (file.as_str(), text.as_str())), &environment)
    }

    /// Reads a file's name and content, and environment variables.
    ///
    /// # Errors
    /// As for `load`.
    pub(crate) fn read(file: Option<(&str, &str)>, environment: &[(String, String)]) -> Result<Self, ConfigError> {
        let mut layers = Layers::default();
        if let Some((name, text)) = file {
            layers.add_file(name, text);
        }
        layers.add_environment(environment);
        let tree = layers.finish().map_err(|problems| ConfigError { problems })?;
        let written: Written = serde_json::from_value(tree).expect("the tree holds options, with values of their kind");
        written.check()
    }

    /// The source of this name; without a name, the only one.
    ///
    /// # Errors
    /// No such source, or several to choose from.
    pub(crate) fn source(&self, name: Option<&str>) -> anyhow::Result<&Source> {
        let names = || self.sources.iter().map(|source| source.name.as_str()).collect::<Vec<_>>().join(", ");
        match (name, self.sources.as_slice()) {
            (None, [only]) => Ok(only),
            (None, _) => anyhow::bail!("name a source; the configuration has: {}", names()),
            (Some(name), sources) => sources
                .iter()
                .find(|source| source.name.as_str() == name)
                .ok_or_else(|| anyhow::anyhow!("no source '{name}'; the configuration has: {}", names())),
        }
    }
}

/// The tree's shape: what the options say, before it is checked that it makes sense together.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    listen: Listen,
    insecure: bool,
    #[serde(default)]
    tls: WrittenTls,
    data_dir: PathBuf,
    #[serde(default)]
    control: Url,
    #[serde(default)]
    sources: BTreeMap<String, WrittenSource>,
    retention: Retention,
    log: Log,
    #[serde(deserialize_with = "milliseconds")]
    shutdown_deadline: Duration,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenTls {
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    client_ca: Option<PathBuf>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Url {
    url: Option<SecretString>,
    url_file: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenSource {
    url: Option<SecretString>,
    url_file: Option<PathBuf>,
    tables: Vec<String>,
    mirror: Vec<String>,
    mirror_on_demand: Vec<String>,
    #[serde(deserialize_with = "milliseconds")]
    mirror_check: Duration,
    slot: String,
    publication: String,
    new_tables: NewTables,
    on_discontinuity: OnDiscontinuity,
    memory: Memory,
    snapshots: Snapshots,
    #[serde(default)]
    shapes: BTreeMap<String, WrittenShape>,
}

impl Written {
    fn check(self) -> Result<Config, ConfigError> {
        let mut problems = Vec::new();
        if self.sources.is_empty() {
            let reason = "no source; name a database, as in sources: {shop: {url_file: …}}, or set POSTGRES_HOST";
            problems.push(Problem::invalid("sources", reason));
        }
        let tls = self.tls.check(&mut problems);
        check_exposure(self.listen.grpc, self.insecure, tls.as_ref(), &mut problems);
        if self.retention.age.is_zero() {
            problems
                .push(Problem::invalid("retention.age", "0 keeps nothing to resume from; write a duration such as 7d"));
        }
        if let Err(error) = self.log.filter.parse::<tracing_subscriber::EnvFilter>() {
            problems.push(Problem::invalid("log.filter", error.to_string()));
        }
        let control_given = self.control.url.is_some() || self.control.url_file.is_some();
        let mut control = if control_given { self.control.check("control", &mut problems) } else { None };
        let several = self.sources.len() > 1;
        let sources: Vec<Source> =
            self.sources.into_iter().filter_map(|(name, source)| source.check(&name, &mut problems)).collect();
        if several && !control_given {
            let reason = "required with several sources; give the database that may hold the schema tidegate";
            problems.push(Problem::invalid("control.url", reason));
        }
        if !control_given {
            control = sources.first().map(|source| source.connect.clone());
        }
        match control {
            Some(control) if problems.is_empty() => Ok(Config {
                listen: self.listen,
                tls,
                data_dir: self.data_dir,
                control,
                sources,
                retention: self.retention,
                log: self.log,
                shutdown_deadline: self.shutdown_deadline,
            }),
            Some(_) | None => Err(ConfigError { problems }),
        }
    }
}

impl WrittenTls {
    fn check(self, problems: &mut Vec<Problem>) -> Option<Tls> {
        match (self.certificate, self.key) {
            (Some(certificate), Some(key)) => Some(Tls { certificate, key, client_ca: self.client_ca }),
            (None, None) => {
                if self.client_ca.is_some() {
                    problems.push(Problem::invalid("tls.client_ca", "needs tls.certificate and tls.key beside it"));
                }
                None
            }
            (Some(_), None) => {
                problems.push(Problem::invalid("tls.key", "missing; tls.certificate needs its private key"));
                None
            }
            (None, Some(_)) => {
                problems.push(Problem::invalid("tls.certificate", "missing; tls.key needs its certificate"));
                None
            }
        }
    }
}

/// Beyond loopback, connections are encrypted and clients known, or someone has said that they need not be.
fn check_exposure(grpc: SocketAddr, insecure: bool, tls: Option<&Tls>, problems: &mut Vec<Problem>) {
    let safe = tls.is_some_and(|tls| tls.client_ca.is_some());
    if !grpc.ip().is_loopback() && !insecure && !safe {
        let reason = format!(
            "{grpc} is beyond loopback, where anyone could read every row; set tls.certificate, tls.key and tls.client_ca, or \
             insecure: true if the network itself is protected"
        );
        problems.push(Problem::invalid("listen.grpc", reason));
    }
}

impl Url {
    fn check(self, path: &str, problems: &mut Vec<Problem>) -> Option<ConnectConfig> {
        let (place, connect) = match (self.url, self.url_file) {
            (Some(url), None) => ("url", ConnectConfig::from_url(url.expose_secret())),
            (None, Some(file)) => ("url_file", ConnectConfig::from_url_file(&file)),
            (Some(_), Some(_)) => {
                problems.push(Problem::invalid(path, "both url and url_file are set; keep one"));
                return None;
            }
            (None, None) => {
                let reason = "neither url nor url_file is set; one must name the database";
                problems.push(Problem::invalid(path, reason));
                return None;
            }
        };
        let invalid = |error: ConnectError| Problem::invalid(format!("{path}.{place}"), error.to_string());
        connect.map_err(|error| problems.push(invalid(error))).ok()
    }
}

impl WrittenSource {
    fn check(self, name: &str, problems: &mut Vec<Problem>) -> Option<Source> {
        let path = format!("sources.{name}");
        let parsed = name.parse::<SourceName>().map_err(|error| Problem::invalid(path.clone(), error.to_string()));
        let connect = Url { url: self.url, url_file: self.url_file }.check(&path, problems);
        let tables = TablePatterns::parse(&self.tables)
            .map_err(|error| Problem::invalid(format!("{path}.tables"), error.to_string()));
        let some = |patterns: &[String], option: &str| match patterns {
            // For `tables`, no pattern at all means every table.
            [] => Ok(TablePatterns::none()),
            some => TablePatterns::parse(some)
                .map_err(|error| Problem::invalid(format!("{path}.{option}"), error.to_string())),
        };
        let mirror = some(&self.mirror, "mirror");
        let on_demand = some(&self.mirror_on_demand, "mirror_on_demand");
        let shapes = shape::check(self.shapes, &path, problems);
        if !is_slot_name(&self.slot) {
            let reason = "a slot's name is made of a-z, 0-9 and _, at most 63 of them";
            problems.push(Problem::invalid(format!("{path}.slot"), reason));
        }
        if self.publication.len() > 63 {
            let reason = "longer than PostgreSQL's 63 bytes for a name";
            problems.push(Problem::invalid(format!("{path}.publication"), reason));
        }
        let mut keep = |problem: Problem| problems.push(problem);
        let (parsed, tables) = (parsed.map_err(&mut keep).ok(), tables.map_err(&mut keep).ok());
        let (mirror, on_demand) = (mirror.map_err(&mut keep).ok(), on_demand.map_err(&mut keep).ok());
        Some(Source {
            name: parsed?,
            connect: connect?,
            tables: tables?,
            mirror: mirror?,
            mirror_on_demand: on_demand?,
            mirror_check: self.mirror_check,
            slot: self.slot,
            publication: self.publication,
            new_tables: self.new_tables,
            on_discontinuity: self.on_discontinuity,
            memory: self.memory,
            snapshots: self.snapshots,
            shapes,
        })
    }
}

/// PostgreSQL manual, section 27.2.6.1: replication slot names.
fn is_slot_name(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

fn milliseconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    u64::deserialize(deserializer).map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = "sources: {shop: {url: 'postgres://app:s3cret@db/shop'}}";

    fn read(text: &str, environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let environment: Vec<_> = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Config::read(Some(("tidegate.yaml", text)), &environment)
    }

    fn error(text: &str, environment: &[(&str, &str)]) -> String {
        read(text, environment).expect_err("must be refused").to_string()
    }

    fn patterns(config: &Config) -> Vec<&str> {
        config.sources[0].tables.included().map(|(text, _)| text).collect()
    }

    #[test]
    fn a_minimal_file_gets_the_defaults() {
        let config = read(MINIMAL, &[]).expect("valid");
        let source = &config.sources[0];
        assert_eq!(source.slot, "tidegate_shop");
        assert_eq!(source.publication, "tidegate_shop");
        assert_eq!(source.on_discontinuity, OnDiscontinuity::Reset);
        assert_eq!(source.new_tables, NewTables::Publish);
        assert!(source.mirror.is_empty() && !source.mirror_on_demand.is_empty());
        assert_eq!(source.memory.feed_bytes, 8 << 20);
        assert_eq!(config.retention.size_bytes, 50 << 30);
        assert_eq!(config.retention.age, Duration::from_secs(7 * 86_400));
        assert_eq!(config.listen.grpc.to_string(), "127.0.0.1:7171");
        assert_eq!(config.control.host, "db");
    }

    /// Holds the table of options and the typed configuration together: what one has, the other has.
    #[test]
    fn every_option_can_be_set_by_its_variable() {
        let key_file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(key_file.path(), "postgres://a@b/c").expect("writable");
        let mut environment = Vec::new();
        for option in options::OPTIONS {
            let value = match (option.path, option.kind) {
                ("sources.<name>.url_file" | "control.url_file", _) => continue,
                (_, value::Kind::Secret) => "postgres://a@b/c".to_owned(),
                (_, value::Kind::Path) => key_file.path().display().to_string(),
                (_, value::Kind::Text) => "warn".to_owned(),
                (_, value::Kind::Address) => "0.0.0.0:1".to_owned(),
                (_, value::Kind::Switch) => "true".to_owned(),
                (_, value::Kind::Count) => "4".to_owned(),
                (_, value::Kind::Size) => "3MiB".to_owned(),
                (_, value::Kind::Duration) => "3s".to_owned(),
                (_, value::Kind::Choice(words)) => words[words.len() - 1].to_owned(),
                (_, value::Kind::List) => "a, b.*".to_owned(),
            };
            let path = option.path.replace("<name>", "shop").replace("<shape>", "open_orders");
            environment.push((layers::variable_name(&path), value));
        }
        let config = Config::read(None, &environment).expect("all are known and valid");
        assert_eq!(patterns(&config), ["a", "b.*"]);
        assert_eq!(config.sources[0].memory.tail_bytes, 3 << 20);
        assert_eq!(config.log.format, LogFormat::Json);
        assert_eq!(config.shutdown_deadline, Duration::from_secs(3));
        assert!(config.tls.is_some());
        let shape = config.sources[0].shapes.values().next().expect("a shape").definition.clone();
        assert_eq!((shape.name.as_str(), shape.parameters.len(), shape.columns.len()), ("open_orders", 2, 2));
    }

    #[test]
    fn unknown_keys_are_refused_with_the_nearest() {
        let text =
            "data_dri: x\nslot: y\nsources: {shop: {url: postgres://a@b/c, tabels: [a]}}\nretention: {weight: 5}\n";
        assert_eq!(
            error(text, &[]),
            "the configuration cannot be used:\n  \
             data_dri: unknown key; did you mean 'data_dir'?\n  \
             slot: unknown key; did you mean 'sources.<name>.slot'?\n  \
             sources.shop.tabels: unknown key; did you mean 'tables'?\n  \
             retention.weight: unknown key; known here: size, age"
        );
    }

    #[test]
    fn values_of_the_wrong_kind_are_refused_with_what_is_expected() {
        let text = "listen: {grpc: 7171}\nretention: {size: lots, age: soon}\ninsecure: perhaps\nlog: {format: xml}\ntls: yes.pem\n";
        assert_eq!(
            error(text, &[]),
            "the configuration cannot be used:\n  \
             listen.grpc: expected an address and port such as 127.0.0.1:7171 or [::1]:7171\n  \
             retention.size: expected a size such as 512MiB, 50GiB or 1GB\n  \
             retention.age: expected a duration such as 500ms, 25s, 12h or 7d\n  \
             insecure: expected true or false\n  \
             log.format: expected text or json\n  \
             tls: expected keys and values"
        );
    }

    #[test]
    fn names_that_yaml_takes_for_something_else_are_refused() {
        let text = "sources:\n  shop:\n    url: postgres://a@b/c\n    tables: [a, n]\n    mirror: [7]\n    mirror_on_demand: no\n    \
                    slot: on\n    shapes: {y: {table: y, columns: [~], parameters: [int]}}\n";
        assert_eq!(
            error(text, &[("TIDEGATE_SOURCES__SHOP__MIRROR", "[orders, y]")]),
            "the configuration cannot be used:\n  \
             sources.shop.tables: YAML reads entry 2 as a boolean, where text is expected; words such as n, y, no, on and true need \
             quotes, as in \"n\"\n  \
             sources.shop.mirror: YAML reads entry 1 as a number, where text is expected; a name of digits needs quotes, as in '\"7\"'\n  \
             sources.shop.mirror_on_demand: YAML reads it as a boolean, where text is expected; words such as n, y, no, on and true \
             need quotes, as in \"n\"\n  \
             sources.shop.slot: YAML reads it as a boolean, where text is expected; words such as n, y, no, on and true need quotes, \
             as in \"n\"\n  \
             sources.shop.shapes.y.table: YAML reads it as a boolean, where text is expected; words such as n, y, no, on and true need \
             quotes, as in \"n\"\n  \
             sources.shop.shapes.y.columns: YAML reads entry 1 as null, where text is expected; a name such as null needs quotes, as \
             in \"null\"\n  \
             TIDEGATE_SOURCES__SHOP__MIRROR: YAML reads entry 2 as a boolean, where text is expected; words such as n, y, no, on and \
             true need quotes, as in \"n\""
        );
        let quoted = "sources: {shop: {url: postgres://a@b/c, tables: ['n', \"y\", '\"7\"', no_no]}}";
        assert_eq!(patterns(&read(quoted, &[]).expect("valid")), ["n", "y", "\"7\"", "no_no"]);
        let unquoted = [("TIDEGATE_SOURCES__SHOP__TABLES", "n, y")];
        assert_eq!(patterns(&read(quoted, &unquoted).expect("valid")), ["n", "y"]);
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        let text = "listen: {grpc: '0.0.0.0:7171'}\nsources:\n  shop: {url: postgres://a@b/c, url_file: d, slot: My-Slot}\n  Shop: {}\n";
        assert_eq!(
            error(text, &[]),
            "the configuration cannot be used:\n  \
             listen.grpc: 0.0.0.0:7171 is beyond loopback, where anyone could read every row; set tls.certificate, tls.key and \
             tls.client_ca, or insecure: true if the network itself is protected\n  \
             sources.Shop: neither url nor url_file is set; one must name the database\n  \
             sources.Shop.slot: a slot's name is made of a-z, 0-9 and _, at most 63 of them\n  \
             sources.Shop: source name 'Shop' is not usable; use a-z, 0-9 and _, starting with a letter, at most 48 of them\n  \
             sources.shop: both url and url_file are set; keep one\n  \
             sources.shop.slot: a slot's name is made of a-z, 0-9 and _, at most 63 of them\n  \
             control.url: required with several sources; give the database that may hold the schema tidegate"
        );
    }

    #[test]
    fn an_empty_configuration_says_what_it_needs() {
        let needs = "the configuration cannot be used:\n  sources: no source; name a database, as in sources: {shop: \
                     {url_file: …}}, or set POSTGRES_HOST";
        for text in ["", "# nothing\n", "sources:\n"] {
            assert_eq!(error(text, &[]), needs, "{text:?}");
        }
    }

    #[test]
    fn broken_yaml_is_placed_without_quoting_it() {
        let text = "sources:\n  shop:\n    url: postgres://a:s3cret@b/c\n    tables: [*.*]\n";
        let message = error(text, &[]);
        assert!(message.contains("tidegate.yaml: line 4, column"), "{message}");
        assert!(message.contains("needs quotes") && !message.contains("s3cret"), "{message}");
    }

    #[test]
    fn secrets_are_never_shown() {
        let config = read(MINIMAL, &[("TIDEGATE_CONTROL__URL", "postgres://u:hidden@c/d")]).expect("valid");
        let debug = format!("{config:?}");
        assert!(!debug.contains("s3cret") && !debug.contains("hidden"), "{debug}");
        let message = error("sources: {shop: {url: 'postgres://app:s3cret@db:port/shop'}}", &[]);
        assert!(!message.contains("s3cret"), "{message}");
    }

    #[test]
    fn the_environment_overrides_the_file() {
        let environment = [("TIDEGATE_SOURCES__SHOP__TABLES", "orders, shop.*"), ("TIDEGATE_RETENTION__SIZE", "1GiB")];
        let config = read(MINIMAL, &environment).expect("valid");
        assert_eq!(patterns(&config), ["orders", "shop.*"]);
        assert_eq!(config.retention.size_bytes, 1 << 30);
    }

    #[test]
    fn a_mirror_is_kept_of_the_tables_that_are_named() {
        let text = "sources: {shop: {url: 'postgres://app@db/shop', mirror: [orders, '!public.audit_*']}}";
        let mirror = read(text, &[]).expect("valid").sources.remove(0).mirror;
        let matches = |name: &str| mirror.matches(&name.parse().expect("a name"));
        assert!(matches("public.orders") && !matches("public.customers"));
        assert!(error(text, &[("TIDEGATE_SOURCES__SHOP__MIRROR", "a.b.c")]).contains("sources.shop.mirror"));
    }

    #[test]
    fn mistyped_variables_are_refused_and_service_links_are_not() {
        let message = error(MINIMAL, &[("TIDEGATE_DATADIR", "x"), ("TIDEGATE_SOURCES__SHOP__SLOTT", "x")]);
        assert!(message.contains("TIDEGATE_DATADIR: no such option; did you mean TIDEGATE_DATA_DIR?"), "{message}");
        assert!(message.contains("did you mean TIDEGATE_SOURCES__SHOP__SLOT?"), "{message}");
        let links = [
            ("TIDEGATE_SERVICE_HOST", "10.0.0.1"),
            ("TIDEGATE_SERVICE_PORT_GRPC", "7171"),
            ("TIDEGATE_PORT", "tcp://10.0.0.1:7171"),
            ("TIDEGATE_PORT_7171_TCP_ADDR", "10.0.0.1"),
        ];
        assert!(read(MINIMAL, &links).is_ok());
    }

    #[test]
    fn postgres_variables_define_the_source_default() {
        let environment = [("POSTGRES_HOST", "db"), ("POSTGRES_NAME", "shop"), ("POSTGRES_PASSWORD", "p@ss/w:rd")];
        let environment: Vec<_> = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let config = Config::read(None, &environment).expect("valid");
        let source = &config.sources[0];
        assert_eq!(source.name.as_str(), "default");
        assert_eq!((source.connect.host.as_str(), source.connect.port), ("db", 5432));
        assert_eq!((source.connect.database.as_str(), source.connect.user.as_str()), ("shop", "postgres"));
        let password = source.connect.password.as_ref().map(ExposeSecret::expose_secret);
        assert_eq!(password, Some("p@ss/w:rd"));
    }
}
