//! Where the subscriptions of a session are, so that progress is encoded, and told where they allow it, once for all that are at the
//! same place.

use bytes::Bytes;
use prost::Message as _;
use tidegate_model::Position;
use tidegate_proto::v1;

use super::{Session, State, open_of};
use crate::frame::{Addressee, Event, Outbox};

/// Places that are compared with: subscriptions are mostly at the last few.
const RECENT: usize = 4;

/// A source, how far it is, and the commit time of the last transaction that was passed.
pub(super) type Place = (usize, Position, Option<i64>);

/// At one moment.
#[derive(Default)]
pub(super) struct Places(Vec<At>);

/// One of them.
pub(super) struct At {
    place: Place,
    progress: v1::Progress,
    encoded: Bytes,
    /// Who is told together with others.
    together: Vec<u32>,
}

impl Session {
    /// Sends everyone's progress.
    pub(super) fn tell_all(&mut self) {
        let mut places = Places::default();
        for (&subscription, found) in &mut self.subscriptions {
            let State::Open(open) = &mut found.state else { continue };
            open.told_caught_up = false;
            let shares_progress = open.shares_progress;
            let at = open.place(&*self.shared.clock, &mut places);
            if shares_progress { at.join(subscription) } else { at.tell(subscription, &mut self.outbox) }
        }
        places.tell(&mut self.outbox);
    }

    /// Says that a subscription has all, where that is new since the clock's last turn.
    pub(super) fn tell_caught_up(&mut self, subscription: u32) {
        let Some(open) = open_of(&mut self.subscriptions, subscription) else { return };
        if open.told_caught_up || !open.is_waiting() {
            return;
        }
        let mut places = Places::default();
        let at = open.place(&*self.shared.clock, &mut places);
        if at.is_caught_up() {
            at.tell(subscription, &mut self.outbox);
            open.told_caught_up = true;
        }
    }
}

impl Places {
    /// What is said of a place; `progress` is asked where it is not among the last.
    pub(super) fn at(&mut self, place: Place, progress: impl FnOnce() -> v1::Progress) -> &mut At {
        let recent = self.0.len().saturating_sub(RECENT);
        let known = self.0[recent..].iter().position(|at| at.place == place);
        let index = known.map_or(self.0.len(), |known| recent + known);
        if known.is_none() {
            let progress = progress();
            let encoded = progress.encode_to_vec().into();
            self.0.push(At { place, progress, encoded, together: Vec::new() });
        }
        &mut self.0[index]
    }

    /// Tells those who are told together.
    pub(super) fn tell(self, out: &mut Outbox) {
        for at in self.0 {
            match at.together[..] {
                [] => {}
                [only] => at.tell(only, out),
                [_, _, ..] => {
                    let progress = v1::Progress { subscriptions: at.together, ..at.progress };
                    let message = v1::SessionResponse {
                        event: Some(v1::session_response::Event::Progress(progress)),
                        ..v1::SessionResponse::default()
                    };
                    out.message(&message);
                }
            }
        }
    }
}

impl At {
    pub(super) fn is_caught_up(&self) -> bool {
        self.progress.caught_up
    }

    /// Tells one subscription.
    pub(super) fn tell(&self, subscription: u32, out: &mut Outbox) {
        let to = Addressee { subscription, selection: 0 };
        out.event(to, Event::Progress, &self.encoded, 0..self.encoded.len());
    }

    /// Tells one subscription together with the others that are there.
    pub(super) fn join(&mut self, subscription: u32) {
        self.together.push(subscription);
    }
}

#[cfg(test)]
mod tests {
    use tidegate_model::Lsn;

    use super::*;
    use crate::frame::tests::messages;

    #[test]
    fn who_is_at_the_same_place_is_told_once() {
        let (mut places, mut outbox) = (Places::default(), Outbox::default());
        let mut asked = 0;
        for (subscription, lsn) in [(1, 5), (2, 6), (3, 5), (4, 7), (5, 6)] {
            let position = Position::new(Lsn(lsn), 0);
            let at = places.at((0, position, None), || {
                asked += 1;
                v1::Progress { position: position.to_string(), ..v1::Progress::default() }
            });
            if subscription == 2 { at.tell(2, &mut outbox) } else { at.join(subscription) }
        }
        places.tell(&mut outbox);
        let told: Vec<_> = messages(&mut outbox)
            .into_iter()
            .map(|message| match message.event {
                Some(v1::session_response::Event::Progress(progress)) => {
                    (message.subscription, progress.subscriptions, progress.position)
                }
                other => panic!("{other:?}"),
            })
            .collect();
        let expected = [(2, vec![], "0/6:0"), (0, vec![1, 3], "0/5:0"), (5, vec![], "0/6:0"), (4, vec![], "0/7:0")];
        assert_eq!(told, expected.map(|(to, of, position)| (to, of, position.to_owned())));
        assert_eq!(asked, 3);
    }

    #[test]
    fn places_that_differ_in_anything_are_others() {
        let mut places = Places::default();
        let position = Position::new(Lsn(5), 0);
        for place in [(0, position, None), (1, position, None), (0, position, Some(1)), (0, Position::ZERO, None)] {
            places.at(place, v1::Progress::default).join(1);
        }
        assert_eq!(places.0.len(), 4);
    }
}
