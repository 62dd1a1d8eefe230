//! The index against an oracle that evaluates every condition for every row, while shapes come and go.

use std::collections::BTreeMap;

use proptest::prelude::*;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{Effect, Index, Room, Routed};
use crate::random::{AnySets, Random, table};
use crate::{Failure, Predicate};

/// What one shape is told, by the meaning of the words.
fn expected(
    shape: &(Predicate, Option<Vec<u32>>),
    old: Option<&[u8]>,
    new: Option<&[u8]>,
) -> Option<Result<Effect, Failure>> {
    let selected = |row: Option<&[u8]>| row.map_or(Ok(false), |row| shape.0.selects(row));
    match (selected(old), selected(new)) {
        (Err(failure), _) | (_, Err(failure)) => Some(Err(failure)),
        (Ok(false), Ok(false)) => None,
        (Ok(false), Ok(true)) => Some(Ok(Effect::MoveIn)),
        (Ok(true), Ok(false)) => Some(Ok(Effect::MoveOut)),
        (Ok(true), Ok(true)) => {
            let changed = super::changed_fields(old.unwrap_or_default(), new.unwrap_or_default()).expect("two rows");
            let concerns = |field: &u32| shape.1.as_ref().is_none_or(|fields| fields.contains(field));
            changed.iter().any(concerns).then_some(Ok(Effect::Update))
        }
    }
}

struct Simulation {
    random: Random,
    index: Index<u32>,
    shapes: BTreeMap<u32, (Predicate, Option<Vec<u32>>)>,
    room: Room,
    next: u32,
    refused: u32,
}

impl Simulation {
    fn insert(&mut self) {
        let condition = self.random.condition(3);
        let Ok(predicate) = Predicate::new(&condition, &[], &table()) else {
            self.refused += 1;
            return;
        };
        let fields = self.random.fields();
        self.index.insert(self.next, &predicate, fields.as_deref()).expect("a new shape");
        self.shapes.insert(self.next, (predicate, fields));
        self.next += 1;
    }

    fn remove(&mut self) {
        let at = self.random.source.random_range(0..self.shapes.len().max(1));
        let Some(&id) = self.shapes.keys().nth(at) else { return };
        self.shapes.remove(&id);
        assert!(self.index.remove(&id));
    }

    /// One row comes, changes and goes.
    fn check_row(&mut self) {
        let values = self.random.values();
        let updated = self.random.updated(&values);
        let (before, after) = (self.random.row(&values), self.random.row(&updated));
        let (before, after) = (before.as_ref(), after.as_ref());
        for (old, new) in [(None, Some(before)), (Some(before), Some(after)), (Some(after), None)] {
            let mut routed = Vec::new();
            self.index.route(old, new, &mut self.room, &mut routed).expect("whole rows");
            routed.sort_by_key(|routed| routed.id);
            let told = self.shapes.iter().filter_map(|(&id, shape)| {
                let effect = expected(shape, old, new)?;
                Some(Routed { id, effect })
            });
            let told: Vec<_> = told.collect();
            if let Some(wrong) = told.iter().find(|one| !routed.contains(one)) {
                let predicate = &self.shapes[&wrong.id].0;
                panic!(
                    "{wrong:?} is not found among {routed:?}\n{}\n{}\n{values:?}",
                    predicate.normal_form(),
                    self.index.explain(predicate)
                );
            }
            assert_eq!(routed, told, "{values:?} {updated:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn it_tells_each_shape_what_evaluating_all_of_them_tells(seed: u64) {
        let random = Random::new(StdRng::seed_from_u64(seed));
        let mut simulation = Simulation {
            random,
            index: Index::new(),
            shapes: BTreeMap::new(),
            room: Room::default(),
            next: 0,
            refused: 0,
        };
        for _ in 0..40 {
            for _ in 0..simulation.random.source.random_range(0..12) {
                simulation.insert();
            }
            for _ in 0..simulation.random.source.random_range(0..8) {
                simulation.remove();
            }
            simulation.check_row();
            prop_assert_eq!(simulation.index.len(), simulation.shapes.len());
        }
        while !simulation.shapes.is_empty() {
            simulation.remove();
        }
        prop_assert!(simulation.index.holds_nothing());
        prop_assert!(simulation.refused < simulation.next, "most conditions are accepted");
    }

    #[test]
    fn selecting_refines_the_three_valued_answer(seed: u64) {
        let mut random = Random::asking(StdRng::seed_from_u64(seed));
        for _ in 0..40 {
            let condition = random.condition(4);
            let made = Predicate::with_tables(&condition, &[], &table(), &[table()]);
            let Ok(predicate) = made else { continue };
            for _ in 0..20 {
                let values = random.values();
                let row = random.row(&values);
                let Ok(outcome) = predicate.evaluate_given(&row, &AnySets) else { continue };
                match (outcome.verdict, predicate.selects_given(&row, &AnySets)) {
                    (Ok(verdict), selected) => {
                        prop_assert_eq!(selected, Ok(verdict == Some(true)), "{} {:?}", condition, values);
                    }
                    (Err(_), Ok(selected)) => prop_assert!(!selected, "{} {:?}", condition, values),
                    (Err(_), Err(failure)) => prop_assert!(matches!(failure, Failure::Evaluation(_))),
                }
            }
        }
    }
}
