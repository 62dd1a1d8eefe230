//! `make bench`: measures Tidegate beside its peers on the same machine in the same run.
//!
//! ```text
//! bench            every case
//! bench drain      one case
//! ```
//!
//! Figures of machines cannot be compared, ratios within one run can. Each case starts its own PostgreSQL and its own server,
//! prints what it does on standard error, and ends in one JSON line on standard output; the lines of all cases come last.
//! A report in Markdown goes to `bench/report.md` in the target folder. Targets that are missed are named on standard error before the
//! lines, and then it fails.

mod bare_reader;
mod bytes_codec;
mod defining;
mod drain;
mod fanout;
mod latency;
mod load;
mod memory;
mod mirror;
mod outcome;
mod raw_session;
mod receive;
mod restart;
mod shape_join;
mod shapes;
mod snapshot;
mod witness;

use std::process::ExitCode;

use anyhow::{Result, bail};

use outcome::Outcome;

const CASES: [&str; 12] = [
    "drain",
    "drain-small",
    "latency",
    "memory",
    "fanout",
    "snapshot",
    "mirror",
    "restart",
    "shapes",
    "shape-join",
    "shape-fanout",
    "shape-latency",
];

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Are all targets met?
async fn run() -> Result<bool> {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let known = |name: &String| CASES.contains(&name.as_str());
    if let Some(unknown) = wanted.iter().find(|name| !known(name)) {
        bail!("there is no case '{unknown}'; there are {}", CASES.join(", "));
    }
    let mut outcomes = Vec::new();
    for case in CASES.into_iter().filter(|case| wanted.is_empty() || wanted.iter().any(|name| name == case)) {
        eprintln!("== {case}");
        outcomes.push(measure(case).await?);
    }
    let report = outcome::write_report(&outcomes)?;
    eprintln!("report: {}", report.display());
    let missed: Vec<String> = outcomes.iter().flat_map(Outcome::missed).collect();
    for missed in &missed {
        eprintln!("target missed: {missed}");
    }
    for outcome in &outcomes {
        println!("{}", outcome.json());
    }
    Ok(missed.is_empty())
}

async fn measure(case: &'static str) -> Result<Outcome> {
    match case {
        "drain" => Box::pin(drain::run(case, drain::Shape::Mixed)).await,
        "drain-small" => Box::pin(drain::run(case, drain::Shape::Small)).await,
        "latency" => Box::pin(latency::run()).await,
        "memory" => Box::pin(memory::run()).await,
        "fanout" => Box::pin(fanout::run()).await,
        "snapshot" => Box::pin(snapshot::run()).await,
        "mirror" => Box::pin(mirror::run()).await,
        "restart" => Box::pin(restart::run()).await,
        "shapes" => Box::pin(shapes::run()).await,
        "shape-join" => Box::pin(shape_join::run()).await,
        "shape-fanout" => Box::pin(fanout::run_shape()).await,
        "shape-latency" => Box::pin(latency::run_shape()).await,
        other => bail!("no case {other}"),
    }
}
