//! What a case has measured: as a JSON line for programs, as Markdown for people.

use std::{
    fmt::{self, Write},
    fs,
    path::PathBuf,
};

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

impl Target {
    /// What is no number is none that should be.
    fn is_met(self, value: f64) -> bool {
        match self {
            Target::AtLeast(least) => value >= least,
            Target::AtMost(most) => value <= most,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::AtLeast(least) => write!(f, "≥ {least}"),
            Target::AtMost(most) => write!(f, "≤ {most}"),
        }
    }
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

    /// Each target that is missed, for people.
    pub(crate) fn missed(&self) -> Vec<String> {
        let missed = self.ratios.iter().chain(&self.figures).filter_map(|Measured { name, value, target }| {
            let target = target.filter(|target| !target.is_met(*value))?;
            Some(format!("{}: {name} is {value}, and should be {target}", self.case))
        });
        missed.collect()
    }

    fn markdown(&self) -> String {
        let mut text = format!("## {}\n\n| what | measured | target | |\n|---|---|---|---|\n", self.case);
        for (kind, list) in [("ratio to ", &self.ratios), ("", &self.figures)] {
            for Measured { name, value, target } in list {
                let (target, met) = match target {
                    Some(target) => (target.to_string(), if target.is_met(*value) { "met" } else { "missed" }),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_target_that_is_missed_is_named_with_its_value() {
        let mut outcome = Outcome::new("drain");
        outcome.ratio("bare_reader", 0.7, Target::AtLeast(0.7));
        outcome.ratio("pg_recvlogical", 0.6999, Target::AtLeast(0.7));
        outcome.figure("bytes", 2_048.0, Some(Target::AtMost(2_048.0)));
        outcome.figure("p99_ms", 12.5, Some(Target::AtMost(10.0)));
        outcome.figure("rows_per_s", 5.0, None);
        outcome.figure("nothing_was_seen", f64::NAN, Some(Target::AtMost(10.0)));
        let missed = [
            "drain: pg_recvlogical is 0.6999, and should be ≥ 0.7",
            "drain: p99_ms is 12.5, and should be ≤ 10",
            "drain: nothing_was_seen is NaN, and should be ≤ 10",
        ];
        assert_eq!(outcome.missed(), missed);
        assert_eq!(outcome.markdown().matches("| missed |").count(), missed.len());
        assert_eq!(outcome.markdown().matches("| met |").count(), 2);
    }

    #[test]
    fn the_line_for_programs_has_every_number_and_no_target() {
        let mut outcome = Outcome::new("drain");
        outcome.ratio("bare_reader", 0.6543, Target::AtLeast(0.7));
        outcome.figure("rows_per_s", 12_345.6, None);
        let line = r#"{"case":"drain","ratios":{"bare_reader":0.654},"figures":{"rows_per_s":12346.0}}"#;
        assert_eq!(outcome.json().to_string(), line);
    }
}
