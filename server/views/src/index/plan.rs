//! What of a condition is looked up: of an AND, what promises the fewest rows; of an OR, each branch.

use std::cmp::Reverse;
use std::sync::Arc;

use super::lookups::{Lookups, Test};
use crate::predicate::{Access, Interval, Lookup, Path, Region};

/// How a condition is found.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// One of them finds each row for which it can be true; none where it never is.
    pub(super) lookups: Vec<(Path, Test)>,
    /// Of each part.
    pub(super) proofs: Vec<Proof>,
    /// There is no such lookup.
    pub(super) each_row: bool,
}

/// What it says of a part that a lookup finds the condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proof {
    /// The part says nothing else: together with those that are evaluated, it is true exactly where a lookup finds the condition, and
    /// fails where the value cannot be read.
    LookedUp,
    /// The part is true there.
    Proven,
    /// Nothing.
    Open,
}

/// One way.
struct Choice {
    lookups: Vec<(Path, Test)>,
    /// What is found has it, without more.
    exact: bool,
    /// How many rows it may find, in no unit.
    cost: u64,
    /// How many other values the column is asked for, which tells it from one that has a few.
    variety: usize,
}

impl Choice {
    fn is_better(&self, other: &Self) -> bool {
        (self.cost, Reverse(self.variety)) < (other.cost, Reverse(other.variety))
    }
}

/// Chooses by what has been chosen for others so far; that is not changed when others come and go.
pub(super) fn plan(parts: &[Access], lookups: &Lookups) -> Plan {
    match best(parts, lookups) {
        Some((choice, proofs)) => Plan { lookups: choice.lookups, proofs, each_row: false },
        None => Plan { lookups: Vec::new(), proofs: vec![Proof::Open; parts.len()], each_row: true },
    }
}

/// The cheapest of parts with AND between them, and what it says of them.
fn best(parts: &[Access], lookups: &Lookups) -> Option<(Choice, Vec<Proof>)> {
    let mut found: Option<(usize, Choice)> = None;
    for (at, part) in parts.iter().enumerate() {
        let choice = match part {
            Access::Column(lookup) if !lookup.path.is_of_elements() => {
                if same_path(&parts[..at], &lookup.path).next().is_some() {
                    continue;
                }
                let others = same_path(&parts[at + 1..], &lookup.path);
                let region = others.fold(lookup.region.clone(), |region, other| region.intersection(&other.region));
                Some(by_region(&lookup.path, &region, lookups))
            }
            Access::Column(_) | Access::All(_) | Access::Any(_) | Access::Unknown => choice(part, lookups),
        };
        if let Some(choice) = choice
            && found.as_ref().is_none_or(|(_, other)| choice.is_better(other))
        {
            found = Some((at, choice));
        }
    }
    let (chosen, choice) = found?;
    let proofs = parts.iter().enumerate().map(|(at, part)| match (part, &parts[chosen]) {
        (Access::Column(lookup), Access::Column(chosen)) if !chosen.path.is_of_elements() => {
            if lookup.exact && lookup.path == chosen.path { Proof::LookedUp } else { Proof::Open }
        }
        _ if at == chosen && choice.exact => Proof::Proven,
        _ => Proof::Open,
    });
    let proofs = proofs.collect();
    Some((choice, proofs))
}

fn same_path<'p>(parts: &'p [Access], path: &'p Path) -> impl Iterator<Item = &'p Lookup> {
    parts
        .iter()
        .filter_map(|part| match part {
            Access::Column(lookup) => Some(lookup),
            Access::All(_) | Access::Any(_) | Access::Unknown => None,
        })
        .filter(move |lookup| lookup.path == *path)
}

fn choice(access: &Access, lookups: &Lookups) -> Option<Choice> {
    match access {
        Access::Column(lookup) => {
            let choice = by_region(&lookup.path, &lookup.region, lookups);
            Some(Choice { exact: lookup.exact, ..choice })
        }
        Access::All(parts) => {
            let (choice, proofs) = best(parts, lookups)?;
            Some(Choice { exact: !proofs.contains(&Proof::Open), ..choice })
        }
        Access::Any(branches) => {
            let mut all = Choice { lookups: Vec::new(), exact: true, cost: 0, variety: usize::MAX };
            for branch in branches {
                let one = choice(branch, lookups)?;
                all.lookups.extend(one.lookups);
                all.exact &= one.exact;
                all.cost = all.cost.saturating_add(one.cost);
                all.variety = all.variety.min(one.variety);
            }
            Some(all)
        }
        Access::Unknown => None,
    }
}

fn by_region(path: &Path, region: &Region, lookups: &Lookups) -> Choice {
    let of_interval = |interval: &Interval| match interval.as_point() {
        Some(key) => Test::Is(key.clone()),
        None => Test::Within(Arc::new(interval.clone())),
    };
    let never = region.intervals.is_empty() && !region.null;
    let others = region.null.then_some(Test::Null).into_iter().chain(never.then_some(Test::Never));
    let tests = region.intervals.iter().map(of_interval).chain(others);
    let lookups_of = tests.map(|test| (path.clone(), test)).collect::<Vec<_>>();
    let cost = lookups_of.iter().map(|(path, test)| weight(test) * (1 + lookups.crowd(path, test) as u64)).sum();
    Choice { lookups: lookups_of, exact: true, cost, variety: lookups.variety(path) }
}

/// A guess by its kind.
fn weight(test: &Test) -> u64 {
    match test {
        Test::Never => 0,
        Test::Is(_) => 1,
        Test::Null => 4,
        Test::Within(interval) => match interval.bound_count() {
            2 => 16,
            1 => 256,
            _ => 4_096,
        },
    }
}
