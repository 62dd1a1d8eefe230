//! Intervals by the keys that they contain: a search tree by the lower end, balanced as an AVL tree, in which each node knows
//! the furthest upper end below it (Cormen et al., *Introduction to Algorithms*, "Interval trees").
//!
//! Invariants: each interval is there once; heights of two siblings differ by one at most, so that no order of insertion makes it
//! deep. Finding the k intervals around a key looks at O((k + 1) log n) nodes.

use std::cmp::Ordering;
use std::sync::Arc;

use crate::predicate::Interval;

type Link = Option<Box<Node>>;

#[derive(Debug, Default)]
pub(super) struct Intervals {
    root: Link,
}

#[derive(Debug)]
struct Node {
    interval: Arc<Interval>,
    value: u32,
    /// The interval of this node or of one below whose upper end is the furthest.
    furthest: Arc<Interval>,
    height: u8,
    left: Link,
    right: Link,
}

impl Intervals {
    pub(super) fn get(&self, interval: &Interval) -> Option<u32> {
        let mut link = &self.root;
        while let Some(node) = link {
            link = match interval.cmp(&node.interval) {
                Ordering::Less => &node.left,
                Ordering::Greater => &node.right,
                Ordering::Equal => return Some(node.value),
            };
        }
        None
    }

    /// Adds one that is not there.
    pub(super) fn insert(&mut self, interval: Arc<Interval>, value: u32) {
        self.root = Some(inserted(self.root.take(), interval, value));
    }

    pub(super) fn remove(&mut self, interval: &Interval) {
        self.root = removed(self.root.take(), interval);
    }

    /// Hands out the values of all intervals that contain the key. How many nodes were looked at.
    pub(super) fn around(&self, key: &[u8], found: &mut impl FnMut(u32)) -> usize {
        around(&self.root, key, found)
    }
}

fn around(link: &Link, key: &[u8], found: &mut impl FnMut(u32)) -> usize {
    let Some(node) = link else { return 0 };
    if node.furthest.high.is_before(key) {
        return 1;
    }
    let mut looked_at = 1 + around(&node.left, key, found);
    if node.interval.low.is_before(key) {
        if !node.interval.high.is_before(key) {
            found(node.value);
        }
        looked_at += around(&node.right, key, found);
    }
    looked_at
}

fn inserted(link: Link, interval: Arc<Interval>, value: u32) -> Box<Node> {
    let Some(mut node) = link else {
        let furthest = interval.clone();
        return Box::new(Node { interval, value, furthest, height: 1, left: None, right: None });
    };
    if interval < node.interval {
        node.left = Some(inserted(node.left.take(), interval, value));
    } else {
        node.right = Some(inserted(node.right.take(), interval, value));
    }
    balanced(node)
}

fn removed(link: Link, interval: &Interval) -> Link {
    let mut node = link?;
    match interval.cmp(&node.interval) {
        Ordering::Less => node.left = removed(node.left.take(), interval),
        Ordering::Greater => node.right = removed(node.right.take(), interval),
        Ordering::Equal => match (node.left.take(), node.right.take()) {
            (None, other) | (other, None) => return other,
            (left, Some(right)) => {
                let (mut least, rest) = without_least(right);
                (least.left, least.right) = (left, rest);
                node = least;
            }
        },
    }
    Some(balanced(node))
}

fn without_least(mut node: Box<Node>) -> (Box<Node>, Link) {
    let Some(left) = node.left.take() else {
        let rest = node.right.take();
        return (node, rest);
    };
    let (least, rest) = without_least(left);
    node.left = rest;
    (least, Some(balanced(node)))
}

fn height(link: &Link) -> u8 {
    link.as_ref().map_or(0, |node| node.height)
}

/// By how much the left side is higher.
fn lean(node: &Node) -> i16 {
    i16::from(height(&node.left)) - i16::from(height(&node.right))
}

/// The subtree of a node whose sides are balanced, and differ by two at most.
fn balanced(mut node: Box<Node>) -> Box<Node> {
    if lean(&node) > 1 {
        node.left = node.left.take().map(|left| if lean(&left) < 0 { turned_left(left) } else { left });
        return turned_right(node);
    }
    if lean(&node) < -1 {
        node.right = node.right.take().map(|right| if lean(&right) > 0 { turned_right(right) } else { right });
        return turned_left(node);
    }
    renew(&mut node);
    node
}

fn turned_right(mut node: Box<Node>) -> Box<Node> {
    let mut top = node.left.take().expect("the higher side has a node");
    node.left = top.right.take();
    renew(&mut node);
    top.right = Some(node);
    renew(&mut top);
    top
}

fn turned_left(mut node: Box<Node>) -> Box<Node> {
    let mut top = node.right.take().expect("the higher side has a node");
    node.right = top.left.take();
    renew(&mut node);
    top.left = Some(node);
    renew(&mut top);
    top
}

/// What a node knows of those below it.
fn renew(node: &mut Node) {
    node.height = 1 + height(&node.left).max(height(&node.right));
    let below = node.left.iter().chain(&node.right).map(|below| &below.furthest);
    let furthest = below.chain([&node.interval]).max_by(|a, b| a.high.cmp(&b.high));
    node.furthest = furthest.expect("there is the node itself").clone();
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;
    use crate::predicate::Cut;

    fn checked(link: &Link) -> usize {
        let Some(node) = link else { return 0 };
        assert!(lean(node).abs() <= 1);
        assert_eq!(node.height, 1 + height(&node.left).max(height(&node.right)));
        for below in node.left.iter().chain(&node.right) {
            assert!(below.furthest.high <= node.furthest.high);
        }
        1 + checked(&node.left) + checked(&node.right)
    }

    fn interval(low: u16, high: u16) -> Arc<Interval> {
        let cut = |number: u16| Cut::At(number.to_be_bytes().as_slice().into(), false);
        Arc::new(Interval { low: cut(low), high: if high == u16::MAX { Cut::End } else { cut(high) } })
    }

    #[test]
    fn it_finds_what_a_list_finds_while_intervals_come_and_go() {
        let mut random = StdRng::seed_from_u64(7);
        let (mut tree, mut list) = (Intervals::default(), Vec::<(Arc<Interval>, u32)>::new());
        for value in 0..4_000_u32 {
            let low = random.random_range(0..500);
            let new =
                interval(low, if random.random_ratio(1, 10) { u16::MAX } else { low + random.random_range(1..60) });
            if tree.get(&new).is_none() {
                tree.insert(new.clone(), value);
                list.push((new, value));
            }
            if random.random_ratio(2, 5) && !list.is_empty() {
                let (gone, _) = list.swap_remove(random.random_range(0..list.len()));
                tree.remove(&gone);
                assert_eq!(tree.get(&gone), None);
            }
            let key = random.random_range(0..600_u16).to_be_bytes();
            let mut found = Vec::new();
            tree.around(&key, &mut |value| found.push(value));
            let mut expected: Vec<u32> =
                list.iter().filter(|(interval, _)| interval.contains(&key)).map(|&(_, value)| value).collect();
            found.sort_unstable();
            expected.sort_unstable();
            assert_eq!(found, expected);
        }
        assert_eq!(checked(&tree.root), list.len());
    }

    #[test]
    fn intervals_in_order_stay_shallow() {
        let mut tree = Intervals::default();
        for low in 0..60_000 {
            tree.insert(interval(low, low + 1), low.into());
        }
        assert!(height(&tree.root) <= 23, "1.44 log2 n");
        let mut found = Vec::new();
        let looked_at = tree.around(&40_000_u16.to_be_bytes(), &mut |value| found.push(value));
        assert_eq!(found, [40_000]);
        assert!(looked_at < 60, "{looked_at} nodes");
        for low in 0..60_000 {
            tree.remove(&interval(low, low + 1));
        }
        assert!(tree.root.is_none());
    }
}
