//! Whether the server's time zone data are those by which conditions with `AT TIME ZONE` are decided.
//!
//! PostgreSQL has data of its own or the operating system's. Only their effect is compared: what clocks show at instants that are given.

use std::collections::HashSet;

use super::Finding;
use crate::{CatalogError, Session};

/// What the clocks of zones show elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneClocks {
    /// Zones that show the same.
    pub names: Vec<String>,
    /// Seconds since 1970.
    pub instants: Vec<i64>,
    /// At each of them, how far they are ahead of UTC, in seconds.
    pub offsets: Vec<i32>,
}

/// So many are named.
const NAMED_MAX: usize = 10;

/// A zone whose clocks show something else on the server.
struct Difference {
    name: String,
    /// The first instant, the offset on the server, and the other, as text; None where the server does not know the zone.
    first: Option<(String, String, String)>,
}

/// The zones that differ, as one finding; None where none does. That they cannot be compared is one, too.
pub async fn zone_finding(session: &Session, zones: &[ZoneClocks]) -> Option<Finding> {
    let differences = match differences(session, zones).await {
        Ok(differences) => differences,
        Err(error) => {
            let problem = format!("the server's time zone data cannot be compared with Tidegate's: {error}");
            let mend = "conditions with AT TIME ZONE can select other rows than in PostgreSQL; see what the error says, and check again";
            return Some(Finding::info("time_zones", problem, mend));
        }
    };
    if differences.is_empty() {
        return None;
    }
    let told = |difference: &Difference| match &difference.first {
        Some((instant, theirs, ours)) => {
            format!("{} (first at {instant}: {theirs} on the server, {ours} here)", difference.name)
        }
        None => format!("{} (unknown to the server)", difference.name),
    };
    let mut named: Vec<String> = differences.iter().take(NAMED_MAX).map(told).collect();
    if let Some(more) = differences.len().checked_sub(NAMED_MAX + 1) {
        named.push(format!("and {} more", more + 1));
    }
    Some(Finding::info(
        "time_zones",
        format!("the server's time zone data differ from Tidegate's: {}", named.join(", ")),
        "a condition with AT TIME ZONE and such a name can select other rows than in PostgreSQL; before you use one, update the \
         server's data (the operating system's package tzdata, else PostgreSQL itself, and restart it) or Tidegate",
    ))
}

async fn differences(session: &Session, zones: &[ZoneClocks]) -> Result<Vec<Difference>, CatalogError> {
    const KNOWN: &str = "SELECT name FROM pg_timezone_names";
    const DIFFERENT: &str = "
        SELECT DISTINCT ON (zone) zone, to_char(to_timestamp(instant) AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS\"Z\"'),
               ((to_timestamp(instant) AT TIME ZONE zone) - (to_timestamp(instant) AT TIME ZONE 'UTC'))::text,
               make_interval(secs => ours)::text
        FROM unnest($1::text[]) AS zone, unnest($2::int8[], $3::int4[]) AS sample (instant, ours)
        WHERE (to_timestamp(instant) AT TIME ZONE zone) - (to_timestamp(instant) AT TIME ZONE 'UTC') <> make_interval(secs => ours)
        ORDER BY zone, instant";
    let doing = CatalogError::while_we("compare time zones");
    let client = session.client();
    let rows = client.query(KNOWN, &[]).await.map_err(&doing)?;
    let known: HashSet<String> = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>().map_err(&doing)?;
    let different = client.prepare(DIFFERENT).await.map_err(&doing)?;
    let mut differences = Vec::new();
    for zone in zones {
        let (there, missing): (Vec<&String>, Vec<&String>) = zone.names.iter().partition(|name| known.contains(*name));
        differences.extend(missing.into_iter().map(|name| Difference { name: name.clone(), first: None }));
        let rows = client.query(&different, &[&there, &zone.instants, &zone.offsets]).await.map_err(&doing)?;
        for row in rows {
            let column = |at| row.try_get::<_, String>(at).map_err(&doing);
            differences.push(Difference { name: column(0)?, first: Some((column(1)?, column(2)?, column(3)?)) });
        }
    }
    differences.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(differences)
}
