//! What the index costs: memory of a shape, and what is done for a row. Counted, not timed.

mod orders;

use allocation_counter::measure;
use tidegate_views::{Effort, Index, Room, Routed};

use orders::{predicate, route, row};

/// A shape of its own for each number, of several kinds.
fn condition(number: u32) -> String {
    match number % 6 {
        0 => format!("tenant = {number}"),
        1 => format!("tenant in ({number}, -{number}) and status = 'open'"),
        2 => format!("price >= {number} and price < {number}.5"),
        3 => format!("sku like 'part-{number:06}-%'"),
        4 => format!("status = 'open' and price * 2 > 10 and tenant = {number}"),
        _ => format!("gone_at is null and (tenant = {number} or sku = 'whole-{number}')"),
    }
}

fn index(count: u32) -> Index<u32> {
    let mut index = Index::new();
    for number in 0..count {
        index.insert(number, &predicate(&condition(number)), None).expect("a new shape");
    }
    index
}

#[test]
fn a_shape_takes_little_memory_and_gives_all_of_it_back() {
    const COUNT: u32 = 100_000;
    let mut bytes = 0;
    let whole = measure(|| {
        let mut index = Index::new();
        let filled = measure(|| {
            for number in 0..COUNT {
                index.insert(number, &predicate(&format!("tenant = {number}")), None).expect("a new shape");
            }
        });
        bytes = filled.bytes_current / i64::from(COUNT);
        for number in 0..COUNT {
            assert!(index.remove(&number));
        }
    });
    println!("{bytes} bytes for each of {COUNT} shapes of one equality");
    assert!(bytes <= 2_048);
    let mut mixed = Index::new();
    let of_mixed = measure(|| mixed = index(12_000));
    assert!(of_mixed.bytes_current / 12_000 <= 2_048, "{} bytes for a larger one", of_mixed.bytes_current / 12_000);
    assert_eq!((whole.bytes_current, whole.count_current), (0, 0));
}

#[test]
fn what_comes_and_goes_leaves_nothing_behind() {
    let mut index = index(1_000);
    let churn = |index: &mut Index<u32>, from: u32| {
        for number in from..from + 10_000 {
            index.insert(number, &predicate(&condition(number)), None).expect("a new shape");
            assert!(index.remove(&number));
        }
    };
    churn(&mut index, 1_000_000);
    let more = measure(|| churn(&mut index, 2_000_000));
    // Tables of hashes may have grown once more; a leak of the smallest piece for each shape would be several times that.
    assert!(more.bytes_current < 32_768, "{} bytes more after 10,000 shapes", more.bytes_current);
}

#[test]
fn a_row_costs_the_same_however_many_shapes_it_does_not_concern() {
    let row = "42|open|44.25|part-000045-x|t|2024-01-01 00:00:00+00";
    let effort = |count: u32| {
        let (index, mut room) = (index(count), Room::default());
        let routed = route(&index, None, Some(row), &mut room);
        (routed.iter().map(|routed| routed.id).collect::<Vec<_>>(), room.effort())
    };
    let (few_found, few) = effort(1_000);
    let (many_found, many) = effort(60_000);
    assert_eq!(few_found, [42, 44, 45]);
    assert_eq!(many_found, few_found);
    let counted = |effort: Effort| (effort.candidates, effort.evaluations);
    assert_eq!(counted(many), counted(few));
    assert!(few.evaluations <= 3, "{few:?}");
    // The trees are deeper by the logarithm.
    assert!(many.steps < few.steps + 40, "{few:?} {many:?}");
}

#[test]
fn a_row_that_concerns_nobody_allocates_nothing() {
    let index = index(6_000);
    let rows =
        [row("-999999|closed|0.001|other|t|2024-01-01 00:00:00+00"), row("-999998|closed|-12345678901234567890.5|||")];
    let (mut room, mut routed) = (Room::default(), Vec::<Routed<u32>>::with_capacity(10));
    let mut run = || {
        for (old, new) in [(None, Some(&rows[0])), (Some(&rows[0]), Some(&rows[1])), (Some(&rows[1]), None)] {
            let (old, new) = (old.map(|row| &row[..]), new.map(|row| &row[..]));
            index.route(old, new, &mut room, &mut routed).expect("whole rows");
        }
    };
    run();
    assert_eq!(measure(&mut run).count_total, 0);
    assert!(routed.is_empty());
    assert_eq!(room.effort().evaluations, 0);
}

#[test]
fn the_lookup_that_few_share_is_chosen() {
    let mut index = Index::new();
    for tenant in 0..5_000 {
        let condition = format!("status = 'open' and tenant = {tenant} and price > 1");
        index.insert(tenant, &predicate(&condition), None).expect("a new shape");
    }
    let mut room = Room::default();
    let routed = route(&index, None, Some("4000|open|5|a|t|"), &mut room);
    assert_eq!(routed.iter().map(|routed| routed.id).collect::<Vec<_>>(), [4_000]);
    assert!(room.effort().candidates <= 2, "{:?}", room.effort());
}

#[test]
fn a_crowded_lookup_lets_go_of_each_at_the_same_cost() {
    let mut index = Index::new();
    const COUNT: u32 = 30_000;
    for number in 0..COUNT {
        let condition = format!("paid and price * {number} > 10");
        index.insert(number, &predicate(&condition), None).expect("a new shape");
    }
    assert!((0..COUNT).all(|number| index.remove(&number)));
    assert!(index.is_empty());
}
