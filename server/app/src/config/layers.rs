//! Puts the layers of configuration on top of each other: defaults, the file, the environment.
//!
//! ```text
//! file.yaml ──▶ checked tree ◀── TIDEGATE_SOURCES__SHOP__URL=…, POSTGRES_HOST=…
//!                    │
//!                    ▼ defaults of what is not set, for each source too
//!               complete tree
//! ```
//!
//! Invariant: every key of the resulting tree is an option, and every value is of its kind. What is wrong is collected,
//! not only the first; values are never quoted in a problem, since any may be a secret.

use serde_json::{Map, Value};

use super::{
    options::{OPTIONS, find, is_group, is_placeholder, keys_below},
    problem::Problem,
    value::Kind,
};

/// Prefix of the environment variables that set options.
const PREFIX: &str = "TIDEGATE_";
/// Variables with that prefix that are no options: of clients, of the demo, of the command line.
const NOT_OPTIONS: &[&str] = &[
    "TIDEGATE_CONFIG",
    "TIDEGATE_PG_BIN",
    "TIDEGATE_SERVER",
    "TIDEGATE_TLS_CA",
    "TIDEGATE_TLS_CERT",
    "TIDEGATE_TLS_KEY",
    "TIDEGATE_TLS_SERVER_NAME",
];

/// The tree of options that are set, and what is wrong with them.
#[derive(Default)]
pub(crate) struct Layers {
    tree: Map<String, Value>,
    problems: Vec<Problem>,
}

impl Layers {
    /// Adds a configuration file's content.
    pub(crate) fn add_file(&mut self, file: &str, text: &str) {
        if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
            return;
        }
        match serde_saphyr::from_str::<Value>(text) {
            Ok(Value::Object(map)) => self.add_map(&mut Vec::new(), &map),
            Ok(Value::Null) => {}
            Ok(_) => self.problems.push(Problem::NotAMap { path: String::new() }),
            // The plain error quotes the lines around it, and with them a password.
            Err(error) => {
                let place = error
                    .location()
                    .map_or_else(String::new, |at| format!(" line {}, column {}", at.line(), at.column()));
                self.problems.push(Problem::Yaml { file: file.to_owned(), place });
            }
        }
    }

    /// Adds `TIDEGATE_…` variables, and those of PostgreSQL's container images as the source `default`.
    pub(crate) fn add_environment(&mut self, variables: &[(String, String)]) {
        for (name, text) in variables {
            let Some(rest) = name.strip_prefix(PREFIX) else { continue };
            if NOT_OPTIONS.contains(&name.as_str()) || is_service_link(name) {
                continue;
            }
            let rest = rest.to_ascii_lowercase();
            let path: Vec<&str> = rest.split("__").collect();
            match find(&path) {
                Some(option) => match option.kind.parse(text) {
                    Ok(value) => self.set(&path, value),
                    Err(misread) => self.problems.push(Problem::misread(name, misread, option.kind)),
                },
                None => self.problems.push(Problem::UnknownVariable {
                    name: name.clone(),
                    nearest: nearest_path(&path).map(|path| variable_name(&path)),
                }),
            }
        }
        self.add_postgres_variables(variables);
    }

    /// The tree with defaults, or all that is wrong.
    pub(crate) fn finish(mut self) -> Result<Value, Vec<Problem>> {
        if !self.problems.is_empty() {
            return Err(self.problems);
        }
        let names: Vec<String> = self
            .tree
            .get("sources")
            .and_then(Value::as_object)
            .map_or_else(Vec::new, |map| map.keys().cloned().collect());
        for option in OPTIONS {
            let Some(default) = option.default else { continue };
            let segments: Vec<&str> = option.path.split('.').collect();
            if segments.contains(&"<name>") {
                for name in &names {
                    let path: Vec<&str> =
                        segments.iter().map(|s| if *s == "<name>" { name.as_str() } else { s }).collect();
                    self.set_default(&path, option.kind, &default.replace("<name>", name));
                }
            } else {
                self.set_default(&segments, option.kind, default);
            }
        }
        Ok(Value::Object(self.tree))
    }

    fn add_map(&mut self, path: &mut Vec<String>, map: &Map<String, Value>) {
        for (key, value) in map {
            path.push(key.clone());
            let segments: Vec<&str> = path.iter().map(String::as_str).collect();
            let dotted = path.join(".");
            if let Some(option) = find(&segments) {
                match (value, option.kind.read(value)) {
                    (Value::Null, _) => {}
                    (_, Ok(read)) => self.set(&segments, read),
                    (_, Err(misread)) => self.problems.push(Problem::misread(&dotted, misread, option.kind)),
                }
            } else if is_group(&segments) {
                match value {
                    Value::Object(below) => {
                        self.open(&segments);
                        self.add_map(path, below);
                    }
                    // A source may stand there without options: its URL may come from the environment.
                    Value::Null => self.open(&segments),
                    _ => self.problems.push(Problem::NotAMap { path: dotted }),
                }
            } else {
                let parent = &segments[..segments.len() - 1];
                let known = keys_below(parent);
                let nearest = place_of(key).or_else(|| nearest(key, known.iter().copied()).map(str::to_owned));
                self.problems.push(Problem::UnknownKey { path: dotted, nearest, known });
            }
            path.pop();
        }
    }

    /// The source `default`, unless it has a URL already.
    fn add_postgres_variables(&mut self, variables: &[(String, String)]) {
        let get = |name: &str| {
            let found = variables.iter().find(|(key, _)| key.strip_prefix("POSTGRES_") == Some(name));
            found.map(|(_, text)| text.as_str()).filter(|text| !text.is_empty())
        };
        if get("HOST").is_none() && get("NAME").is_none() {
            return;
        }
        let has =
            |key: &str| self.tree.get("sources").and_then(|s| s.get("default")).and_then(|s| s.get(key)).is_some();
        if has("url") || has("url_file") {
            return;
        }
        let user = get("USER").unwrap_or("postgres");
        let password = get("PASSWORD").map_or_else(String::new, |text| format!(":{}", percent_encode(text)));
        let port = get("PORT").unwrap_or("5432");
        let host = percent_encode(get("HOST").unwrap_or("localhost"));
        let database = percent_encode(get("NAME").unwrap_or(user));
        let url = format!("postgres://{}{password}@{host}:{port}/{database}", percent_encode(user));
        self.set(&["sources", "default", "url"], Value::from(url));
    }

    fn open(&mut self, path: &[&str]) {
        let mut map = &mut self.tree;
        for segment in path {
            let entry = map.entry((*segment).to_owned()).or_insert_with(|| Value::Object(Map::new()));
            map = entry.as_object_mut().expect("groups and options have different paths");
        }
    }

    fn set(&mut self, path: &[&str], value: Value) {
        let Some((key, groups)) = path.split_last() else { return };
        self.open(groups);
        let mut map = &mut self.tree;
        for segment in groups {
            map = map.get_mut(*segment).and_then(Value::as_object_mut).expect("just opened");
        }
        map.insert((*key).to_owned(), value);
    }

    fn set_default(&mut self, path: &[&str], kind: Kind, text: &str) {
        let pointer = format!("/{}", path.join("/"));
        let set = self
            .tree
            .get(path[0])
            .is_some_and(|top| path.len() == 1 || top.pointer(&pointer[path[0].len() + 1..]).is_some());
        if !set {
            self.set(path, kind.parse(text).expect("defaults are of their option's kind"));
        }
    }
}

/// Kubernetes sets `TIDEGATE_SERVICE_HOST`, `TIDEGATE_PORT_7171_TCP_ADDR` and more for a service named `tidegate`.
fn is_service_link(name: &str) -> bool {
    let port = name.ends_with("_PORT") || name.contains("_PORT_") && (name.contains("_TCP") || name.contains("_UDP"));
    !name.contains("__") && (name.ends_with("_SERVICE_HOST") || name.contains("_SERVICE_PORT") || port)
}

/// The known word that was probably meant.
fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let distance = |candidate: &str| strsim::damerau_levenshtein(word, candidate);
    let best = known.filter(|candidate| !is_placeholder(candidate)).min_by_key(|candidate| distance(candidate))?;
    (distance(best) <= 2.max(word.len() / 3)).then_some(best)
}

/// Where a key of this name belongs, if it stands in the wrong place.
fn place_of(key: &str) -> Option<String> {
    OPTIONS.iter().map(|option| option.path).find(|path| path.split('.').next_back() == Some(key)).map(str::to_owned)
}

/// The option's path that was probably meant, with the source's name as it was given.
fn nearest_path(path: &[&str]) -> Option<String> {
    let name = if path.first() == Some(&"sources") { path.get(1).copied() } else { None };
    let shape = if path.get(2) == Some(&"shapes") { path.get(3).copied().unwrap_or("shape") } else { "shape" };
    let known: Vec<String> = OPTIONS
        .iter()
        .map(|option| option.path.replace("<name>", name.unwrap_or("name")).replace("<shape>", shape))
        .collect();
    nearest(&path.join("."), known.iter().map(String::as_str)).map(str::to_owned)
}

/// The environment variable of an option.
pub(crate) fn variable_name(path: &str) -> String {
    format!("{PREFIX}{}", path.to_ascii_uppercase().replace('.', "__"))
}

fn percent_encode(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}
