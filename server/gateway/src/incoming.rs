//! What a subscription reads: the log, at first perhaps with a snapshot out of the mirror woven in, and later with what brings it to other
//! definitions of its shapes.

use std::sync::Arc;

use tidegate_model::Block;
use tidegate_store::{MirrorError, Place, ReadError, Reader};

use crate::{
    mirror_snapshot::MirrorSnapshot,
    redefinition::{Turned, Turning},
    reset::Refusal,
    sets::{Ended, Kept},
};

/// A subscription's way through the log.
pub(crate) struct Incoming {
    reader: Reader,
    snapshot: Option<Box<MirrorSnapshot>>,
    turning: Option<Box<Turning>>,
    /// What has to be known up to its place before a block is handed out.
    kept: Kept,
    /// Waits for that.
    waiting: Option<Given>,
}

/// What comes.
pub(crate) enum Given {
    Block(Block),
    /// A part of what brings the subscription to other definitions.
    Turned(Turned),
}

/// Why nothing more comes.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Interrupted {
    #[error(transparent)]
    Log(#[from] ReadError),
    #[error("{error}")]
    Mirror { snapshot: u32, error: MirrorError },
    #[error(transparent)]
    Sets(#[from] Arc<Ended>),
    #[error("a shape has been defined anew")]
    Redefined(Box<Refusal>),
}

impl Incoming {
    pub(crate) fn log(reader: Reader) -> Self {
        Incoming { reader, snapshot: None, turning: None, kept: Kept::default(), waiting: None }
    }

    pub(crate) fn with_snapshot(reader: Reader, snapshot: MirrorSnapshot) -> Self {
        Incoming { snapshot: Some(Box::new(snapshot)), ..Incoming::log(reader) }
    }

    /// The same for shapes with subqueries.
    pub(crate) fn with_sets(self, kept: Kept) -> Self {
        Incoming { kept, ..self }
    }

    /// Sets out to other definitions. It has to be plain.
    pub(crate) fn turn(&mut self, turning: Turning) {
        self.turning = Some(Box::new(turning));
    }

    /// Has all been handed out that was woven into the log?
    pub(crate) fn is_plain(&self) -> bool {
        self.waiting.is_none()
            && self.snapshot.as_ref().is_none_or(|snapshot| snapshot.has_ended())
            && self.turning.as_ref().is_none_or(|turning| turning.has_ended())
    }

    /// Where it is in the log; None while something is woven into that.
    pub(crate) fn place(&self) -> Option<Place> {
        (self.snapshot.is_none() && self.turning.is_none()).then(|| self.reader.place())
    }

    /// What comes next. Cancel safe.
    pub(crate) async fn next(&mut self) -> Result<Given, Interrupted> {
        if self.waiting.is_none() {
            self.waiting = Some(self.read().await?);
        }
        self.kept.passed(self.reader.place()).await?;
        Ok(self.waiting.take().expect("nobody else takes it"))
    }

    async fn read(&mut self) -> Result<Given, Interrupted> {
        if let Some(snapshot) = &mut self.snapshot {
            if let Some(block) = snapshot.next(&mut self.reader).await? {
                return Ok(Given::Block(block));
            }
            self.snapshot = None;
        }
        if let Some(turning) = &mut self.turning {
            if let Some(given) = turning.next(&mut self.reader).await? {
                return Ok(given);
            }
            self.turning = None;
        }
        Ok(Given::Block(self.reader.next().await?))
    }
}
