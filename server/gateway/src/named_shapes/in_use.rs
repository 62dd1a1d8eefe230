//! The named shapes that a subscription has selected, each as it was at some version of the source's shapes, to see when one is not any
//! more what it was.
//!
//! Invariant: all of them are as they were at one version, so that what came behind it can be told as steps, of one name each.

use std::{future::Future, sync::Arc, time::Duration};

use tidegate_model::{Epoch, ShapeName};
use tidegate_proto::v1;
use tokio::{sync::watch, time::sleep};

use super::{KnownShapes, NOW, NamedShape, NamedShapeError, resolved};
use crate::{redefinition, reset::Refusal, selection::Filter, status::GatewayError};

/// Versions that are looked through for what a token belongs to.
const POINTS_MAX: usize = 32;
/// Until an edit that could not be told may be.
const AGAIN: Duration = Duration::from_secs(1);

/// A selection that is a named shape, as it is selected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NamedVersion {
    /// Which one.
    pub(super) selection: usize,
    pub(super) name: ShapeName,
    pub(super) version: u64,
}

/// Those of one subscription; most have none.
#[derive(Clone, Debug)]
pub(crate) struct NamedInUse(Option<Box<InUse>>);

#[derive(Clone, Debug)]
struct InUse {
    known: watch::Receiver<Arc<KnownShapes>>,
    versions: Arc<[NamedVersion]>,
    /// Of the subscription.
    epoch: Epoch,
    /// The subscription can be brought to other definitions.
    takes_differences: bool,
    state: State,
    /// It is time to see what an edit means.
    due: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Current,
    /// One is defined otherwise now.
    Edited,
    /// This one is not there any more.
    Gone(ShapeName),
}

impl State {
    fn of(versions: &[NamedVersion], known: &KnownShapes) -> Self {
        let mut state = State::Current;
        for NamedVersion { name, version, .. } in versions {
            match known.get(name) {
                None => return State::Gone(name.clone()),
                Some(found) if found.version != *version => state = State::Edited,
                Some(_) => {}
            }
        }
        state
    }
}

impl InUse {
    /// Is there a way to another definition?
    fn is_edited(&self) -> bool {
        self.takes_differences && self.state == State::Edited
    }
}

impl NamedInUse {
    pub(super) fn new(known: watch::Receiver<Arc<KnownShapes>>, versions: Vec<NamedVersion>) -> Self {
        if versions.is_empty() {
            return NamedInUse(None);
        }
        let state = State::of(&versions, &known.borrow());
        let due = state == State::Edited;
        NamedInUse(Some(Box::new(InUse {
            known,
            versions: versions.into(),
            epoch: Epoch(0),
            takes_differences: true,
            state,
            due,
        })))
    }

    /// Of a subscription in this epoch that can, or cannot, be brought to other definitions.
    pub(crate) fn of(mut self, epoch: Epoch, takes_differences: bool) -> Self {
        if let Some(in_use) = &mut self.0 {
            (in_use.epoch, in_use.takes_differences) = (epoch, takes_differences);
            in_use.due &= takes_differences;
        }
        self
    }

    /// The subscription's, if anything is named.
    pub(crate) fn epoch(&self) -> Option<Epoch> {
        self.0.as_ref().map(|in_use| in_use.epoch)
    }

    /// Is there something else to be known by now, of any name?
    pub(crate) fn is_outdated(&self) -> bool {
        self.0.as_ref().is_some_and(|in_use| in_use.known.has_changed().unwrap_or(false))
    }

    /// Is anything named that another server may have defined anew, which the configuration does not declare?
    pub(crate) fn may_be_edited(&self) -> bool {
        let Some(in_use) = &self.0 else { return false };
        let known = in_use.known.borrow();
        let is_declared = |of: &NamedVersion| known.get(&of.name).is_some_and(NamedShape::is_declared);
        !in_use.versions.iter().all(is_declared)
    }

    /// Looks at what is known now. Costs nothing while nothing is defined.
    pub(crate) fn look(&mut self) {
        let Some(in_use) = &mut self.0 else { return };
        if in_use.known.has_changed().unwrap_or(false) {
            let known = Arc::clone(&in_use.known.borrow_and_update());
            in_use.state = State::of(&in_use.versions, &known);
            in_use.due = in_use.is_edited();
        }
    }

    /// What could not be told before may be now.
    pub(crate) fn remind(&mut self) {
        self.0.iter_mut().for_each(|in_use| in_use.due = in_use.is_edited());
    }

    /// Is it time to see what an edit means?
    pub(crate) fn is_due(&self) -> bool {
        self.0.as_ref().is_some_and(|in_use| in_use.due)
    }

    /// The same, once.
    pub(crate) fn take_due(&mut self) -> bool {
        self.0.as_mut().is_some_and(|in_use| std::mem::take(&mut in_use.due))
    }

    /// Why the subscription ends, if one has been deleted; or defined anew, where it cannot be brought to that.
    pub(crate) fn gone(&self) -> Option<Refusal> {
        let in_use = self.0.as_ref()?;
        match &in_use.state {
            State::Gone(name) => {
                let error = NamedShapeError::Unknown { name: name.clone(), near: Vec::new() };
                Some(Refusal::Error(error.into()))
            }
            State::Edited if !in_use.takes_differences => {
                Some(redefinition::reset(self, "the subscription does not ask for differences"))
            }
            State::Current | State::Edited => None,
        }
    }

    /// Resolves when one is defined anew, or deleted, that has not been looked at; where one has been, after a while, when it may be told.
    /// Holds nothing of this.
    pub(crate) fn edited(&self) -> impl Future<Output = ()> + Send + use<> {
        let is_edited = self.0.as_ref().is_some_and(|in_use| in_use.is_edited());
        let in_use = self.0.as_ref().filter(|in_use| in_use.state == State::Current);
        let in_use = in_use.map(|in_use| (in_use.known.clone(), Arc::clone(&in_use.versions)));
        async move {
            if is_edited {
                return sleep(AGAIN).await;
            }
            let Some((mut known, versions)) = in_use else { return std::future::pending().await };
            if known.wait_for(|known| State::of(&versions, known) != State::Current).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// The versions to go on to: the newest, and the next, at which one name alone came to be something else than it is here.
    pub(crate) fn ahead(&self) -> Vec<u64> {
        let points = self.points(|version, own| version > own);
        match points[..] {
            // Of what the control database has lost since, nothing is known but what it is now.
            [] => vec![NOW],
            [newest] => vec![newest],
            [newest, .., next] => vec![newest, next],
        }
    }

    /// The versions at which one of the names came to be what it is, or was, newest first.
    pub(crate) fn all(&self) -> Vec<u64> {
        let mut points = self.points(|_, _| true);
        points.truncate(POINTS_MAX);
        points
    }

    fn points(&self, counts: impl Fn(u64, u64) -> bool) -> Vec<u64> {
        let Some(in_use) = &self.0 else { return Vec::new() };
        let known = in_use.known.borrow();
        let mut points: Vec<u64> = Vec::new();
        for NamedVersion { name, version: own, .. } in &*in_use.versions {
            let versions = known.get(name).into_iter().flat_map(|shape| shape.versions());
            points.extend(versions.map(|(_, version)| version).filter(|version| counts(*version, *own)));
        }
        points.sort_unstable_by(|a, b| b.cmp(a));
        points.dedup();
        points
    }

    /// What the names mean at a version, with the values that the selections have: by selection. And they as they are then.
    pub(crate) fn at(
        &self,
        version: u64,
        filters: &[Filter],
    ) -> Result<(Vec<(usize, v1::ShapeSelection)>, Self), GatewayError> {
        let Some(in_use) = &self.0 else { return Ok((Vec::new(), self.clone())) };
        let mut receiver = in_use.known.clone();
        let known = Arc::clone(&receiver.borrow_and_update());
        let (mut meant, mut versions) = (Vec::new(), Vec::new());
        for NamedVersion { selection, name, .. } in &*in_use.versions {
            let shape = filters.get(*selection).and_then(Filter::shape);
            let values = shape.map(|shape| shape.definition().parameters.clone()).unwrap_or_default();
            let parameter = |value| v1::Parameter { r#type: String::new(), value };
            let parameters = values.into_iter().map(|of| parameter(of.value)).collect();
            let by_name = v1::ShapeSelection { name: name.to_string(), parameters, ..v1::ShapeSelection::default() };
            let (definition, name, version) = resolved(by_name, &known, version)?;
            versions.push(NamedVersion { selection: *selection, name, version });
            meant.push((*selection, definition));
        }
        drop(known);
        Ok((meant, NamedInUse::new(receiver, versions).of(in_use.epoch, in_use.takes_differences)))
    }

    /// Their names, for people.
    pub(crate) fn names(&self) -> String {
        let versions = self.0.iter().flat_map(|in_use| in_use.versions.iter());
        let mut names: Vec<&str> = versions.map(|version| version.name.as_str()).collect();
        names.dedup();
        names.join(", ")
    }
}
