//! Does the publication still send what it sent before? Compares its content ([`tidegate_postgres::PublicationContent`]) with
//! what the control database has recorded.
//!
//! Every line is a promise. One that is gone means that changes were not sent for a while, or are not any more, unless its table
//! or schema has itself been dropped. Before a line that has joined stands what is still to be done about it, so that it is known
//! after every crash:
//!
//! ```text
//! new ── all have ended who may have written to the table before it joined ──▶ read by 7 ──▶ (nothing)
//!  └──────────── no snapshot is to be made ──▶ (nothing)        again ◀── snapshot 7 has failed
//!                                                                 └──▶ read by 8
//! ```
//!
//! A table that is published with another row filter or column
//! list keeps its promise if it has a mirror: that is compared with the table again, and what differs is delivered.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fmt,
    sync::Arc,
};

use tidegate_control::{Control, KnownPublication};
use tidegate_model::SourceName;
use tidegate_postgres::{CatalogError, PublicationContent, Session, existing};
use tokio::sync::watch;

use crate::{CaptureError, Discontinuity, MirrorLink};

/// What is still to be done about a line that has joined; it stands before the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Todo {
    Nothing,
    /// Who may have written to the table before is waited for.
    New,
    /// This snapshot of new tables brings its rows.
    ReadBy(u32),
    /// Such a snapshot has failed: another is to be made.
    Again,
}

impl Todo {
    /// Splits a recorded line.
    fn split(line: &str) -> (Todo, &str) {
        let read_by = |rest: &'_ str| {
            let (snapshot, promise) = rest.split_once(' ')?;
            Some((snapshot.parse().ok()?, line.len() - promise.len()))
        };
        if let Some(promise) = line.strip_prefix("new ") {
            (Todo::New, promise)
        } else if let Some(promise) = line.strip_prefix("again ") {
            (Todo::Again, promise)
        } else if let Some((snapshot, at)) = line.strip_prefix("read by ").and_then(read_by) {
            (Todo::ReadBy(snapshot), &line[at..])
        } else {
            (Todo::Nothing, line)
        }
    }

    /// Have those ended who may have written to the table before?
    fn is_settled(self) -> bool {
        match self {
            Todo::New => false,
            Todo::Nothing | Todo::ReadBy(_) | Todo::Again => true,
        }
    }
}

impl fmt::Display for Todo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Todo::Nothing => Ok(()),
            Todo::New => f.write_str("new "),
            Todo::ReadBy(snapshot) => write!(f, "read by {snapshot} "),
            Todo::Again => f.write_str("again "),
        }
    }
}

/// What the publication promises, as it is recorded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Promised {
    /// Of the publication; 0 before the first connection.
    pub(crate) oid: u32,
    pub(crate) content: Arc<str>,
}

impl Promised {
    /// What is promised now; what was not before is new. A settled table that is published in another way stays what it was: it
    /// is mirrored, and compared again.
    fn joined_by(known: &str, now: &PublicationContent) -> Self {
        let is_member = |line: &str| line.starts_with("table ") || line.starts_with("schema ");
        let known = || known.lines().map(Todo::split);
        let lines: HashMap<&str, Todo> = known().map(|(todo, promise)| (promise, todo)).collect();
        let settled = known().filter(|(todo, _)| todo.is_settled());
        let tables: HashMap<u32, Todo> =
            settled.filter_map(|(todo, promise)| Some((table_of(promise)?, todo))).collect();
        let todo = |line: &str| {
            let known = lines.get(line).or_else(|| tables.get(&table_of(line)?)).copied();
            known.unwrap_or(if is_member(line) { Todo::New } else { Todo::Nothing })
        };
        Promised::of(now.oid, now.content.lines().map(|line| (todo(line), line)))
    }

    fn of<'a>(oid: u32, lines: impl Iterator<Item = (Todo, &'a str)>) -> Self {
        let lines: Vec<String> = lines.map(|(todo, promise)| format!("{todo}{promise}")).collect();
        Promised { oid, content: lines.join("\n").into() }
    }

    /// Nothing has a past.
    fn all_settled(now: &PublicationContent) -> Self {
        Promised { oid: now.oid, content: now.content.as_str().into() }
    }

    /// The lines about which there is something to be done.
    pub(crate) fn todo(&self) -> Vec<(Todo, String)> {
        let lines = self.content.lines().map(Todo::split).filter(|(todo, _)| *todo != Todo::Nothing);
        lines.map(|(todo, promise)| (todo, promise.to_owned())).collect()
    }

    /// The same with this to be done about that line.
    pub(crate) fn with(&self, todo: Todo, of: &str) -> Self {
        let lines = self.content.lines().map(Todo::split);
        Promised::of(self.oid, lines.map(|(was, promise)| (if promise == of { todo } else { was }, promise)))
    }

    /// Is the past of these members settled, as [`tidegate_postgres::memberships`] names them?
    pub(crate) fn are_settled(&self, members: &[String]) -> bool {
        let is_settled = |member: &String| {
            let of_member = |line: &str| {
                line.strip_prefix(member.as_str()).is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
            };
            let mut settled = self.content.lines().map(Todo::split).filter(|(todo, _)| todo.is_settled());
            settled.any(|(_, promise)| of_member(promise))
        };
        members.iter().all(is_settled)
    }
}

/// The publication's promises and where they are recorded.
#[derive(Clone)]
pub(crate) struct Promises {
    pub(crate) control: Control,
    pub(crate) source: SourceName,
    pub(crate) publication: String,
    /// What is recorded.
    pub(crate) promised: watch::Sender<Promised>,
    pub(crate) mirror: MirrorLink,
}

impl Promises {
    /// Compares what the publication promises with what it promised before.
    ///
    /// # Errors
    /// [`Discontinuity`]; or a database cannot be asked.
    pub(crate) async fn compare(&self, session: &Session, now: &PublicationContent) -> Result<(), CaptureError> {
        let known = self.control.publication(&self.source).await?;
        Ok(self.kept(session, known.as_ref(), now).await??)
    }

    /// Records what it promises at a connection. Who wrote before a slot was made has ended before that.
    ///
    /// # Errors
    /// The control database cannot be asked.
    pub(crate) async fn connected(&self, now: &PublicationContent, slot_is_new: bool) -> Result<(), CaptureError> {
        let known = self.control.publication(&self.source).await?.and_then(|known| known.content);
        let promised = match known {
            Some(known) if !slot_is_new => Promised::joined_by(&known, now),
            Some(_) | None => Promised::all_settled(now),
        };
        self.record(promised).await
    }

    /// Records what is promised now.
    ///
    /// # Errors
    /// The control database cannot be asked.
    pub(crate) async fn record(&self, promised: Promised) -> Result<(), CaptureError> {
        self.control.set_publication(&self.source, (promised.oid, &promised.content)).await?;
        self.recorded(promised);
        Ok(())
    }

    /// It has been recorded.
    pub(crate) fn recorded(&self, promised: Promised) {
        self.promised.send_replace(promised);
    }

    /// Looks at the publication while it is captured through, and records what has joined it. A control database that cannot
    /// be asked is tried again at the next look.
    ///
    /// # Errors
    /// [`Discontinuity`]; or the source's database cannot be asked.
    pub(crate) async fn look_after(
        &self,
        session: &Session,
        seen: &mut PublicationContent,
        now: PublicationContent,
    ) -> Result<(), CaptureError> {
        if now == *seen {
            return Ok(());
        }
        let promised = self.promised.borrow().clone();
        let known = KnownPublication { oid: promised.oid, content: Some(promised.content.to_string()) };
        self.kept(session, Some(&known), &now).await??;
        match self.record(Promised::joined_by(&promised.content, &now)).await {
            Ok(()) => *seen = now,
            Err(error) => {
                tracing::warn!(source = %self.source, %error, "what has joined the publication is not recorded yet")
            }
        }
        Ok(())
    }

    async fn kept(
        &self,
        session: &Session,
        known: Option<&KnownPublication>,
        now: &PublicationContent,
    ) -> Result<Result<(), Discontinuity>, CatalogError> {
        let publication = self.publication.clone();
        // Unknown is as bad as another: the control database was lost, and with it the proof.
        let Some(known) = known.filter(|known| known.oid == now.oid) else {
            return Ok(Err(Discontinuity::PublicationRecreated { publication }));
        };
        let mut broken = broken(known.content.as_deref().unwrap_or_default(), &now.content);
        let changed = broken.still_published(&now.content);
        if !changed.is_empty() {
            let mirrored = self.mirrored().await;
            broken.tables.retain(|oid| !(changed.contains(oid) && mirrored.contains(oid)));
        }
        let mut what = existing(session, &broken.tables, &broken.schemas).await?;
        if broken.options {
            what.push("its options or owner".to_owned());
        }
        if what.is_empty() {
            return Ok(Ok(()));
        }
        Ok(Err(Discontinuity::PublicationChanged { publication, what: what.join(", ") }))
    }

    /// The tables whose mirror is complete. It is opened beside the connection, and waited for.
    async fn mirrored(&self) -> BTreeSet<u32> {
        let Some(mut complete) = self.mirror.complete.clone() else { return BTreeSet::new() };
        let known = complete.wait_for(Option::is_some).await;
        known.ok().and_then(|known| known.as_deref().cloned()).unwrap_or_default()
    }
}

/// The promises that are gone, by OID.
#[derive(Debug, Default, PartialEq, Eq)]
struct Broken {
    options: bool,
    tables: Vec<u32>,
    schemas: Vec<u32>,
}

impl Broken {
    /// Those of the tables that are published in another way now.
    fn still_published(&self, now: &str) -> HashSet<u32> {
        let published: HashSet<u32> = now.lines().filter_map(table_of).collect();
        self.tables.iter().copied().filter(|oid| published.contains(oid)).collect()
    }
}

/// The table that a line is about.
fn table_of(line: &str) -> Option<u32> {
    line.strip_prefix("table ")?.split(' ').next()?.parse().ok()
}

fn broken(known: &str, now: &str) -> Broken {
    let now: HashSet<&str> = now.lines().collect();
    let mut broken = Broken::default();
    for line in known.lines().map(|line| Todo::split(line).1).filter(|line| !now.contains(line)) {
        let mut words = line.split(' ');
        let (kind, oid) = (words.next(), words.next().and_then(|oid| oid.parse().ok()));
        match (kind, oid) {
            (Some("table"), Some(oid)) => broken.tables.push(oid),
            (Some("schema"), Some(oid)) => broken.schemas.push(oid),
            (Some(_) | None, _) => broken.options = true,
        }
    }
    broken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_joins_breaks_nothing_and_what_goes_or_changes_does() {
        let known = "options 741 f t t t t t\ntable 16385 16390 \ntable 16400 16401 d41d8 1 2\nschema 2200 16402";
        assert_eq!(broken(known, known), Broken::default());
        assert_eq!(broken(known, &format!("table 5 6 \n{known}\nschema 7 8")), Broken::default());
        let readded = known.replace("16390", "16500");
        assert_eq!(broken(known, &readded), Broken { tables: vec![16385], ..Broken::default() });
        let listed = known.replace("d41d8 1 2", "d41d8 1");
        assert_eq!(broken(known, &listed), Broken { tables: vec![16400], ..Broken::default() });
        assert_eq!(broken(known, &listed).still_published(&listed), HashSet::from([16400]));
        let gone = known.replace("schema 2200 16402", "");
        assert_eq!(broken(known, &gone), Broken { schemas: vec![2200], ..Broken::default() });
        // The flags are the same again, but the row of the catalog is another.
        assert_eq!(broken(known, &known.replace("741", "742")), Broken { options: true, ..Broken::default() });
    }

    #[test]
    fn what_joins_has_a_past_until_it_is_settled() {
        let now = |content: &str| PublicationContent { oid: 7, content: content.to_owned() };
        let first = "options 741 f t t t t t\ntable 16385 16390 ";
        let both = format!("{first}\ntable 16400 16401 ");
        let joined = Promised::joined_by(first, &now(&both));
        assert_eq!(joined.todo(), [(Todo::New, "table 16400 16401 ".to_owned())]);
        // It stays so over connections, and is a promise already.
        assert_eq!(Promised::joined_by(&joined.content, &now(&both)), joined);
        assert_eq!(broken(&joined.content, &both), Broken::default());
        assert_eq!(broken(&joined.content, first), Broken { tables: vec![16400], ..Broken::default() });
        let members = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert!(joined.are_settled(&members(&["table 16385 16390"])) && joined.are_settled(&[]));
        assert!(!joined.are_settled(&members(&["table 16385 16390", "table 16400 16401"])));
        assert!(!joined.are_settled(&members(&["table 16385 1639"])));
        let settled = joined.with(Todo::Nothing, "table 16400 16401 ");
        assert!(settled.todo().is_empty() && settled.are_settled(&members(&["table 16400 16401"])));
        assert_eq!(settled, Promised::all_settled(&now(&both)));
    }

    #[test]
    fn that_a_snapshot_reads_it_is_known_until_that_is_done() {
        let now = |content: &str| PublicationContent { oid: 7, content: content.to_owned() };
        let (options, table) = ("options 741 f t t t t t", "table 16400 16401 ");
        let both = format!("{options}\n{table}");
        let joined = Promised::joined_by(options, &now(&both));
        for todo in [Todo::ReadBy(12), Todo::Again] {
            let read = joined.with(todo, table);
            assert_eq!(read.todo(), [(todo, table.to_owned())]);
            assert!(read.are_settled(&["table 16400 16401".to_owned()]));
            // It stays so over connections, and where the table is published in another way.
            assert_eq!(Promised::joined_by(&read.content, &now(&both)), read);
            let listed = format!("{both}d41d8 1");
            assert_eq!(Promised::joined_by(&read.content, &now(&listed)).todo()[0].0, todo);
            assert_eq!(broken(&read.content, &both), Broken::default());
            assert_eq!(broken(&read.content, options), Broken { tables: vec![16400], ..Broken::default() });
        }
        assert_eq!(&*joined.with(Todo::ReadBy(12), table).content, &format!("{options}\nread by 12 {table}"));
    }

    #[test]
    fn what_an_earlier_release_has_not_recorded_is_no_promise() {
        assert_eq!(broken("", "options 741 f t t t t t"), Broken::default());
    }
}
