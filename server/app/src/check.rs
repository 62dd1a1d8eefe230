//! `tidegate check`: can the databases be captured? Each finding with its mend; exit code 3 where something must be mended.
//!
//! `--sql` prints what a database administrator runs instead. It changes nothing in the database.

use clap::Args;
use tidegate_postgres::{
    Session,
    preflight::{self, CheckRequest, Finding, Setup, Severity, ZoneClocks},
};

use crate::{Outcome, config::Source, databases::DatabaseArgs};

/// Examine whether databases can be captured; exit code 3 if something must be mended.
#[derive(Args)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    databases: DatabaseArgs,
    /// With --url: the tables to capture, as names or patterns.
    #[arg(long, value_name = "PATTERNS", requires = "url", value_delimiter = ',')]
    tables: Vec<String>,
    /// Print the SQL that sets up role, grants, publication and settings, and examine nothing.
    #[arg(long)]
    sql: bool,
}

/// Examines every source.
///
/// # Errors
/// The configuration cannot be used; a database that cannot be reached is a finding.
pub(crate) async fn run(args: &CheckArgs) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::Done;
    for source in &args.databases.sources(&args.tables)? {
        if args.sql {
            println!("{}", preflight::setup_sql(&setup_of(source).await));
            continue;
        }
        let findings = examine(source).await?;
        print!("{}", report(source, &findings));
        if findings.iter().any(|finding| must_be_mended(finding.severity)) {
            outcome = Outcome::Findings;
        }
    }
    Ok(outcome)
}

fn request(source: &Source) -> CheckRequest {
    CheckRequest { slot: source.slot.clone(), publication: source.publication.clone(), patterns: source.tables.clone() }
}

/// What is to be set up; as far as it is known, where the role or the database is yet to be made.
async fn setup_of(source: &Source) -> Setup {
    let known =
        async { anyhow::Ok(preflight::setup(&Session::connect(&source.connect).await?, &request(source)).await?) };
    match Box::pin(known).await {
        Ok(setup) => setup,
        Err(error) => {
            eprintln!("tidegate: {error:#}\ntidegate: so only the tables that are named without * are listed");
            Setup {
                role: source.connect.user.clone(),
                database: source.connect.database.clone(),
                publication: source.publication.clone(),
                tables: source.tables.exact_names().collect(),
                managed: None,
            }
        }
    }
}

async fn examine(source: &Source) -> anyhow::Result<Vec<Finding>> {
    let session = match Session::connect(&source.connect).await {
        Ok(session) => session,
        Err(error) => return Ok(vec![Finding::of_connect_error(&error)]),
    };
    let mut findings = preflight::check(&session, &request(source)).await?;
    findings.extend(preflight::zone_finding(&session, &zones()).await);
    Ok(findings)
}

/// What conditions with `AT TIME ZONE` are decided by.
fn zones() -> Vec<ZoneClocks> {
    let zones = tidegate_views::zone_clocks().into_iter();
    zones.map(|zone| ZoneClocks { names: zone.names, instants: zone.instants, offsets: zone.offsets }).collect()
}

fn must_be_mended(severity: Severity) -> bool {
    match severity {
        Severity::Error | Severity::Warning => true,
        Severity::Info => false,
    }
}

fn report(source: &Source, findings: &[Finding]) -> String {
    let mut text = format!("{} ({})\n", source.name, source.connect.address());
    for Finding { severity, code, problem, mend } in findings {
        let severity = match severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Info => "info",
        };
        text.push_str(&format!("  {severity:<8} {code}: {problem}\n"));
        if !mend.is_empty() {
            text.push_str(&format!("           {}\n", mend.replace('\n', "\n           ")));
        }
    }
    let count = findings.iter().filter(|finding| must_be_mended(finding.severity)).count();
    text.push_str(&match count {
        0 => "  ready to be captured\n".to_owned(),
        1 => "  1 finding to be mended\n".to_owned(),
        more => format!("  {more} findings to be mended\n"),
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn source() -> Source {
        let variables = [("TIDEGATE_SOURCES__SHOP__URL".to_owned(), "postgres://app:s3cret@db/shop".to_owned())];
        Config::read(None, &variables).expect("valid").sources.remove(0)
    }

    #[test]
    fn findings_are_printed_with_their_mend() {
        let finding = Finding {
            severity: Severity::Error,
            code: "wal_level",
            problem: "wal_level is 'replica'".to_owned(),
            mend: "set it to 'logical'\nrestart PostgreSQL".to_owned(),
        };
        assert_eq!(
            report(&source(), &[finding]),
            "shop (db:5432/shop)\n  error    wal_level: wal_level is 'replica'\n           set it to 'logical'\n           restart \
             PostgreSQL\n  1 finding to be mended\n"
        );
        assert_eq!(report(&source(), &[]), "shop (db:5432/shop)\n  ready to be captured\n");
    }
}
