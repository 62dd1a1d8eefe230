//! Does the publication still send what it sent before? Compares its content ([`tidegate_postgres::PublicationContent`]) with
//! what the control database has recorded.
//!
//! Every line is a promise. One that is new has no past to be lost; one that is gone means that changes were not sent for
//! a while, or are not any more, unless its table or schema has itself been dropped.

use tidegate_control::{Control, KnownPublication};
use tidegate_model::SourceName;
use tidegate_postgres::{CatalogError, PublicationContent, Session, existing, publication_content};

use crate::{CaptureError, Discontinuity};

/// The publication's promises and where they are recorded.
#[derive(Clone)]
pub(crate) struct Promises {
    pub(crate) control: Control,
    pub(crate) source: SourceName,
    pub(crate) publication: String,
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

    /// Records what it promises.
    ///
    /// # Errors
    /// The control database cannot be asked.
    pub(crate) async fn record(&self, now: &PublicationContent) -> Result<(), CaptureError> {
        Ok(self.control.set_publication(&self.source, (now.oid, &now.content)).await?)
    }

    /// Looks at the publication while it is captured through, and records what has joined it. A control database that cannot
    /// be asked is tried again at the next look. A publication that is missing ends the stream by itself.
    ///
    /// # Errors
    /// [`Discontinuity`]; or the source's database cannot be asked.
    pub(crate) async fn look_after(
        &self,
        session: &Session,
        seen: &mut PublicationContent,
    ) -> Result<(), CaptureError> {
        let Some(now) = publication_content(session, &self.publication).await? else { return Ok(()) };
        if now == *seen {
            return Ok(());
        }
        let known = KnownPublication { oid: seen.oid, content: Some(seen.content.clone()) };
        self.kept(session, Some(&known), &now).await??;
        match self.record(&now).await {
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
        let broken = broken(known.content.as_deref().unwrap_or_default(), &now.content);
        let mut what = existing(session, &broken.tables, &broken.schemas).await?;
        if broken.options {
            what.push("its options or owner".to_owned());
        }
        if what.is_empty() {
            return Ok(Ok(()));
        }
        Ok(Err(Discontinuity::PublicationChanged { publication, what: what.join(", ") }))
    }
}

/// The promises that are gone, by OID.
#[derive(Debug, Default, PartialEq, Eq)]
struct Broken {
    options: bool,
    tables: Vec<u32>,
    schemas: Vec<u32>,
}

fn broken(known: &str, now: &str) -> Broken {
    let now: std::collections::HashSet<&str> = now.lines().collect();
    let mut broken = Broken::default();
    for line in known.lines().filter(|line| !now.contains(line)) {
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
        let gone = known.replace("schema 2200 16402", "");
        assert_eq!(broken(known, &gone), Broken { schemas: vec![2200], ..Broken::default() });
        // The flags are the same again, but the row of the catalog is another.
        assert_eq!(broken(known, &known.replace("741", "742")), Broken { options: true, ..Broken::default() });
    }

    #[test]
    fn what_an_earlier_release_has_not_recorded_is_no_promise() {
        assert_eq!(broken("", "options 741 f t t t t t"), Broken::default());
    }
}
