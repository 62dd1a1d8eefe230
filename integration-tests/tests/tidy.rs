//! Tidy: what the documents say about the code is compared with the code, and the rules of CONTRIBUTING.md that a lint
//! cannot express are checked.
//!
//! It reads files and nothing else, so it runs in a moment and needs neither PostgreSQL nor the binary.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

const LINES_MAX: usize = 600;
const TOP_FOLDERS: &[&str] = &["proto", "server", "sdk", "migrations", "integration-tests", "helm"];
const TOP_FILES: &[&str] = &[
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "LICENSE",
    "Makefile",
    "Dockerfile",
    "Cargo.toml",
    "Cargo.lock",
    "clippy.toml",
    "deny.toml",
    "rustfmt.toml",
];
const VAGUE_NAMES: &[&str] = &["utils", "util", "common", "helpers", "helper", "types", "manager", "misc"];
const GLOSSARY: &[&str] = &[
    "Source",
    "Lsn",
    "Slot",
    "Publication",
    "Relation",
    "Key",
    "Incarnation",
    "Transaction",
    "Snapshot",
    "Chunk",
    "Watermark",
    "Feed",
    "Changelog",
    "Mirror",
    "Position",
    "Epoch",
    "Token",
    "Row type",
    "Block",
    "Shape",
    "Aggregate",
    "Selection",
    "Subscription",
    "Group",
    "Credit",
    "Reset",
    "Drain",
    "Lease",
    "Term",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every file of the repository, relative to its root, without hidden ones and what is built.
fn files() -> Result<Vec<PathBuf>> {
    fn walk(root: &Path, dir: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
        for entry in fs::read_dir(root.join(dir))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = dir.join(&name);
            if name.starts_with('.') || name == "node_modules" || path == Path::new("target") {
                continue;
            }
            if entry.file_type()?.is_dir() { walk(root, &path, found)? } else { found.push(path) }
        }
        Ok(())
    }
    let mut found = Vec::new();
    walk(&root(), Path::new(""), &mut found)?;
    found.sort();
    Ok(found)
}

fn rust_files() -> Result<Vec<(PathBuf, String)>> {
    let rust = files()?.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    rust.map(|path| Ok((path.clone(), read(&path)?))).collect()
}

fn read(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    fs::read_to_string(root().join(path)).with_context(|| path.display().to_string())
}

/// Fails with all complaints, one a line.
fn no_complaints(complaints: Vec<String>) -> Result<()> {
    ensure!(complaints.is_empty(), "\n{}", complaints.join("\n"));
    Ok(())
}

/// A crate of the workspace: the crates of ours that it names in its dependencies, and its manifest.
struct Manifest {
    imports: BTreeSet<String>,
    table: toml::Table,
}

/// Short name as in the crate table (`server/model` is `model`) by package name.
fn short_name(folder: &str) -> &str {
    folder.strip_prefix("server/").unwrap_or(folder)
}

/// By folder.
fn manifests() -> Result<BTreeMap<String, Manifest>> {
    let mut tables = BTreeMap::new();
    for path in files()?.into_iter().filter(|path| path.ends_with("Cargo.toml") && path != Path::new("Cargo.toml")) {
        let folder = path.parent().context("folder")?.display().to_string();
        tables.insert(folder, read(&path)?.parse::<toml::Table>()?);
    }
    let package = |table: &toml::Table| table["package"]["name"].as_str().unwrap_or_default().to_owned();
    let names: BTreeMap<String, String> =
        tables.iter().map(|(folder, table)| (package(table), short_name(folder).to_owned())).collect();
    let manifest = |table: toml::Table| {
        let dependencies = table.get("dependencies").and_then(toml::Value::as_table).cloned().unwrap_or_default();
        let imports = dependencies.keys().filter_map(|name| names.get(name).cloned()).collect();
        Manifest { imports, table }
    };
    Ok(tables.into_iter().map(|(folder, table)| (folder, manifest(table))).collect())
}

/// The crate table of ARCHITECTURE.md: folder and what it may import; None stands for "all".
fn crate_table() -> Result<BTreeMap<String, Option<BTreeSet<String>>>> {
    let text = read("ARCHITECTURE.md")?;
    let (_, table) = text.split_once("| Crate | What it is | May import |\n").context("no crate table")?;
    let mut rows = BTreeMap::new();
    for row in table.lines().skip(1).take_while(|line| line.starts_with('|')) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [folder, _, imports] = cells.as_slice() else { anyhow::bail!("a row without three cells: {row}") };
        let imports = match *imports {
            "all" => None,
            "–" => Some(BTreeSet::new()),
            list => Some(list.split(", ").map(str::to_owned).collect()),
        };
        rows.insert(folder.trim_matches('`').to_owned(), imports);
    }
    Ok(rows)
}

#[test]
fn the_crate_table_says_what_the_manifests_say() -> Result<()> {
    let (table, manifests) = (crate_table()?, manifests()?);
    let mut complaints = Vec::new();
    for folder in manifests.keys().filter(|folder| !table.contains_key(*folder)) {
        complaints.push(format!("{folder} is a crate, but not in the crate table"));
    }
    for (folder, allowed) in &table {
        let Some(manifest) = manifests.get(folder) else {
            complaints.push(format!("{folder} is in the crate table, but not a crate"));
            continue;
        };
        let Some(allowed) = allowed else { continue };
        for import in manifest.imports.difference(allowed) {
            complaints.push(format!("{folder} imports {import}; the crate table does not allow it"));
        }
        for import in allowed.difference(&manifest.imports) {
            complaints.push(format!("the crate table says that {folder} imports {import}; it does not"));
        }
    }
    no_complaints(complaints)
}

#[test]
fn every_crate_takes_lints_and_dependencies_from_the_workspace() -> Result<()> {
    let mut complaints = Vec::new();
    for (folder, manifest) in manifests()? {
        let inherits = |value: Option<&toml::Value>| {
            value.and_then(|value| value.get("workspace")).and_then(toml::Value::as_bool) == Some(true)
        };
        if !inherits(manifest.table.get("lints")) {
            complaints.push(format!("{folder} does not take the workspace's lints"));
        }
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let dependencies = manifest.table.get(section).and_then(toml::Value::as_table);
            for (name, value) in dependencies.into_iter().flatten() {
                if !inherits(Some(value)) {
                    complaints.push(format!("{folder} declares {name} itself; declare it in the workspace"));
                }
            }
        }
    }
    no_complaints(complaints)
}

#[test]
fn every_file_says_what_it_is() -> Result<()> {
    let silent = rust_files()?.into_iter().filter(|(_, text)| !text.starts_with("//!"));
    no_complaints(silent.map(|(path, _)| format!("{} does not begin with //!", path.display())).collect())
}

#[test]
fn no_file_is_long() -> Result<()> {
    let mut complaints = Vec::new();
    for (path, text) in rust_files()? {
        let before_tests = text.lines().take_while(|line| line.trim() != "#[cfg(test)]").count();
        if before_tests > LINES_MAX {
            complaints.push(format!("{} has {before_tests} lines before its tests; split it", path.display()));
        }
    }
    no_complaints(complaints)
}

#[test]
fn names_of_files_and_folders_say_something() -> Result<()> {
    let mut complaints = Vec::new();
    for path in files()? {
        for part in &path {
            let part = part.to_string_lossy();
            let stem = part.split('.').next().unwrap_or_default();
            if VAGUE_NAMES.contains(&stem) {
                complaints.push(format!("{}: '{stem}' says nothing", path.display()));
            }
        }
    }
    no_complaints(complaints)
}

#[test]
fn nothing_else_stands_at_the_top() -> Result<()> {
    let mut complaints = Vec::new();
    for path in files()? {
        let first = path.iter().next().context("a path has parts")?.to_string_lossy().into_owned();
        let allowed = if path.iter().count() == 1 { TOP_FILES } else { TOP_FOLDERS };
        if !allowed.contains(&first.as_str()) {
            complaints.push(format!("{} does not belong at the top", path.display()));
        }
    }
    no_complaints(complaints)
}

#[test]
fn nothing_is_exported_wholesale() -> Result<()> {
    let mut complaints = Vec::new();
    for (path, text) in rust_files()? {
        for line in text.lines().map(str::trim) {
            if line.starts_with("pub use") && line.ends_with("::*;") {
                complaints.push(format!("{}: {line}; name what is exported", path.display()));
            }
        }
    }
    no_complaints(complaints)
}

#[test]
fn no_file_knows_a_machine_or_leaves_work_undone() -> Result<()> {
    // In two pieces each, so that this file does not find itself.
    let forbidden: Vec<String> = [
        ("/ho", "me/"),
        ("/ro", "ot/"),
        ("/wo", "rk/"),
        ("/Us", "ers/"),
        ("192.", "168."),
        ("TO", "DO"),
        ("FIX", "ME"),
    ]
    .iter()
    .map(|(first, second)| format!("{first}{second}"))
    .collect();
    let mut complaints = Vec::new();
    for path in files()? {
        // Lock files and binary fixtures are not ours to word.
        let Ok(text) = read(&path) else { continue };
        if path.extension().is_some_and(|extension| extension == "lock") {
            continue;
        }
        for word in forbidden.iter().filter(|word| text.contains(word.as_str())) {
            complaints.push(format!("{} contains {word}", path.display()));
        }
    }
    no_complaints(complaints)
}

#[test]
fn the_glossary_has_every_word() -> Result<()> {
    let text = read("server/model/src/lib.rs")?;
    let missing = GLOSSARY.iter().filter(|word| !text.contains(&format!("**{word}**")));
    no_complaints(missing.map(|word| format!("the glossary in server/model/src/lib.rs lacks {word}")).collect())
}

/// What stands between backquotes in the documents.
fn quoted_in_documents() -> Result<Vec<(PathBuf, String)>> {
    let mut quoted = Vec::new();
    for path in files()?.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "md")) {
        let text = read(&path)?;
        // Code blocks hold other things than names; every second part is within one.
        for prose in text.split("```").step_by(2) {
            quoted.extend(prose.split('`').skip(1).step_by(2).map(|words| (path.clone(), words.to_owned())));
        }
    }
    Ok(quoted)
}

#[test]
fn files_named_in_documents_exist() -> Result<()> {
    let known: Vec<String> = [".rs", ".proto", ".sql", ".md", ".toml", ".sh"].iter().map(ToString::to_string).collect();
    let mut complaints = Vec::new();
    for (document, name) in quoted_in_documents()? {
        let is_file = name.contains('/') && known.iter().any(|ending| name.ends_with(ending.as_str()));
        let is_pattern = name.contains(['*', '<', ' ', '{']);
        // What is built is there only later.
        let is_built = name.starts_with("target/");
        if is_file && !is_pattern && !is_built && !root().join(&name).exists() {
            complaints.push(format!("{} names {name}, which does not exist", document.display()));
        }
    }
    no_complaints(complaints)
}

#[test]
fn make_targets_named_in_documents_exist() -> Result<()> {
    let makefile = read("Makefile")?;
    let mut complaints = Vec::new();
    for (document, command) in quoted_in_documents()? {
        let target = command.strip_prefix("make ").and_then(|rest| rest.split_whitespace().next());
        if let Some(target) = target
            && !makefile.contains(&format!("\n{target}:"))
        {
            complaints.push(format!("{} names `make {target}`, which does not exist", document.display()));
        }
    }
    no_complaints(complaints)
}

#[test]
fn links_between_documents_lead_somewhere() -> Result<()> {
    let mut complaints = Vec::new();
    for path in files()?.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "md")) {
        let folder = path.parent().context("folder")?;
        for rest in read(&path)?.split("](").skip(1) {
            let link = rest.split([')', '#']).next().unwrap_or_default();
            let local = !link.is_empty() && !link.contains("://");
            if local && !root().join(folder).join(link).exists() {
                complaints.push(format!("{} links to {link}, which does not exist", path.display()));
            }
        }
    }
    no_complaints(complaints)
}
