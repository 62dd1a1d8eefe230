//! What a case has measured: as a JSON line for programs, as Markdown for people.

use std::{fmt::Write, fs, path::PathBuf};

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

/// A measured number and what it should be.
#[derive(Debug)]
struct Measured {
    name: &'static str,
    value: f64,
    target: Option<Target>,
}

/// What a number should be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    AtLeast(f64),
    AtMost(f64),
}

/// Of one case.
#[derive(Debug)]
pub(crate) struct Outcome {
    case: &'static str,
    ratios: Vec<Measured>,
    figures: Vec<Measured>,
    notes: Vec<String>,
}

impl Outcome {
    pub(crate) fn new(case: &'static str) -> Self {
        Outcome { case, ratios: Vec::new(), figures: Vec::new(), notes: Vec::new() }
    }

    /// Ours against a peer's, in this run.
    pub(crate) fn ratio(&mut self, name: &'static str, value: f64, target: Target) {
        self.ratios.push(Measured { name, value, target: Some(target) });
    }

    /// A number that only this machine has.
    pub(crate) fn figure(&mut self, name: &'static str, value: f64, target: Option<Target>) {
        self.figures.push(Measured { name, value, target });
    }

    /// How it was measured.
    pub(crate) fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    pub(crate) fn json(&self) -> Value {
        let object = |list: &[Measured]| {
            let pairs = list.iter().map(|measured| (measured.name.to_owned(), json!(rounded(measured.value))));
            Value::Object(pairs.collect::<Map<String, Value>>())
        };
        json!({ "case": self.case, "ratios": object(&self.ratios), "figures": object(&self.figures) })
    }

    fn markdown(&self) -> String {
        let mut text = format!("## {}\n\n| what | measured | target | |\n|---|---|---|---|\n", self.case);
        for (kind, list) in [("ratio to ", &self.ratios), ("", &self.figures)] {
            for Measured { name, value, target } in list {
                let (target, met) = match target {
                    Some(Target::AtLeast(least)) => {
                        (format!("≥ {least}"), if value >= least { "met" } else { "missed" })
                    }
                    Some(Target::AtMost(most)) => (format!("≤ {most}"), if value <= most { "met" } else { "missed" }),
                    None => (String::new(), ""),
                };
                writeln!(text, "| {kind}{name} | {} | {target} | {met} |", rounded(*value))
                    .expect("a String takes all");
            }
        }
        for note in &self.notes {
            write!(text, "\n{note}\n").expect("a String takes all");
        }
        text
    }
}

/// Three decimals of what is small, none of what is large.
fn rounded(value: f64) -> f64 {
    if value.abs() >= 1_000.0 { value.round() } else { (value * 1_000.0).round() / 1_000.0 }
}

/// Writes the report of these cases; returns where.
pub(crate) fn write_report(outcomes: &[Outcome]) -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let target = program.parent().and_then(std::path::Path::parent).context("target folder")?;
    let path = target.join("bench").join("report.md");
    fs::create_dir_all(path.parent().context("folder")?)?;
    let cores = std::thread::available_parallelism()?;
    let mut text = format!("# Benchmarks\n\n{cores} cores, shared by PostgreSQL, the server and its client.\n\n");
    text.push_str(&outcomes.iter().map(Outcome::markdown).collect::<Vec<_>>().join("\n"));
    fs::write(&path, text)?;
    Ok(path)
}
