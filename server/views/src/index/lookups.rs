//! What rows are looked up by: for each column (and cast) the keys, the intervals and NULL that conditions ask for, each with
//! those who ask.
//!
//! Invariants: a bucket has a member, and a path a bucket; a member knows the posting that put it there and the posting its
//! place, so that removing one costs the same however crowded a bucket is.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use slab::Slab;

use super::intervals::Intervals;
use super::plan::Plan;
use crate::predicate::{Failure, Interval, Key, Keyed, Path, Row};

/// What a value is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Test {
    Is(Key),
    Within(Arc<Interval>),
    Null,
    /// It has none of the values that there are. Who asks so is found only where a value cannot be read.
    Never,
}

impl Test {
    fn holds(&self, keyed: &Keyed<'_>) -> bool {
        match (self, keyed) {
            (Test::Is(key), Keyed::Key(found)) => **key == **found,
            (Test::Within(interval), Keyed::Key(found)) => interval.contains(found),
            (Test::Null, Keyed::Null) => true,
            (Test::Is(_) | Test::Within(_) | Test::Never, Keyed::Null)
            | (Test::Null | Test::Never, Keyed::Key(_))
            | (Test::Is(_) | Test::Within(_) | Test::Null | Test::Never, Keyed::Unreadable) => false,
        }
    }
}

/// Where an entry has been put.
#[derive(Clone, Copy, Debug)]
pub(super) struct Posting {
    bucket: u32,
    /// The place among the bucket's members.
    pub(super) at: u32,
}

/// Who is in a bucket: an entry, by which of its postings.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asking {
    pub(super) entry: u32,
    pub(super) posting: u32,
}

#[derive(Debug, Default)]
pub(super) struct Lookups {
    paths: Slab<PathLookups>,
    buckets: Slab<Bucket>,
    /// What no lookup serves.
    each_row: Vec<Asking>,
}

/// The number that stands for `each_row`.
const EACH_ROW: u32 = u32::MAX;

#[derive(Debug)]
struct Bucket {
    path: usize,
    test: Test,
    members: Vec<Asking>,
}

/// What is looked up of one column.
#[derive(Debug)]
pub(super) struct PathLookups {
    path: Path,
    points: HashMap<Key, u32>,
    /// No key among the points has had more bytes: a large value need not be hashed.
    longest_point: usize,
    intervals: Intervals,
    null: Option<u32>,
    never: Option<u32>,
    bucket_count: usize,
}

/// Gives back what a table that was much larger has kept.
pub(super) fn shrink<K: Eq + Hash, V>(table: &mut HashMap<K, V>) {
    if table.len() < table.capacity() / 8 {
        table.shrink_to(2 * table.len());
    }
}

impl PathLookups {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn column(&self) -> usize {
        self.path.column
    }

    fn bucket(&self, test: &Test) -> Option<u32> {
        match test {
            Test::Is(key) => self.points.get(key).copied(),
            Test::Within(interval) => self.intervals.get(interval),
            Test::Null => self.null,
            Test::Never => self.never,
        }
    }

    fn insert(&mut self, test: &Test, bucket: u32) {
        self.bucket_count += 1;
        match test {
            Test::Is(key) => {
                self.longest_point = self.longest_point.max(key.len());
                self.points.insert(key.clone(), bucket);
            }
            Test::Within(interval) => self.intervals.insert(interval.clone(), bucket),
            Test::Null => self.null = Some(bucket),
            Test::Never => self.never = Some(bucket),
        }
    }

    fn remove(&mut self, test: &Test) {
        self.bucket_count -= 1;
        match test {
            Test::Is(key) => {
                self.points.remove(key);
                shrink(&mut self.points);
            }
            Test::Within(interval) => self.intervals.remove(interval),
            Test::Null => self.null = None,
            Test::Never => self.never = None,
        }
    }
}

impl Lookups {
    pub(super) fn paths(&self) -> impl Iterator<Item = &PathLookups> {
        self.paths.iter().map(|(_, path)| path)
    }

    pub(super) fn each_row(&self) -> impl Iterator<Item = u32> {
        self.each_row.iter().map(|member| member.entry)
    }

    /// Hands out the entries that ask for what the row has, some more than once. How much was looked at; None where it is not
    /// known what the row has.
    pub(super) fn find(&self, path: &PathLookups, keyed: Keyed<'_>, mut found: impl FnMut(u32)) -> Option<usize> {
        let mut hand_out = |bucket: u32| {
            self.buckets[bucket as usize].members.iter().for_each(|member| found(member.entry));
        };
        match keyed {
            Keyed::Null => path.null.into_iter().for_each(hand_out),
            Keyed::Key(key) => {
                let point = if key.len() <= path.longest_point { path.points.get(key) } else { None };
                point.copied().into_iter().for_each(&mut hand_out);
                return Some(1 + path.intervals.around(key, &mut hand_out));
            }
            Keyed::Unreadable => return None,
        }
        Some(1)
    }

    fn of_path(&self, path: &Path) -> Option<&PathLookups> {
        self.paths().find(|lookups| lookups.path == *path)
    }

    /// How many ask for the same already.
    pub(super) fn crowd(&self, path: &Path, test: &Test) -> usize {
        let bucket = self.of_path(path).and_then(|path| path.bucket(test));
        bucket.map_or(0, |bucket| self.buckets[bucket as usize].members.len())
    }

    /// How many different things are asked of it.
    pub(super) fn variety(&self, path: &Path) -> usize {
        self.of_path(path).map_or(0, |path| path.bucket_count)
    }

    pub(super) fn add(&mut self, entry: u32, plan: &Plan) -> Vec<Posting> {
        if plan.each_row {
            let at = self.each_row.len() as u32;
            self.each_row.push(Asking { entry, posting: 0 });
            return vec![Posting { bucket: EACH_ROW, at }];
        }
        let mut postings = Vec::with_capacity(plan.lookups.len());
        for (path, test) in &plan.lookups {
            let bucket = self.bucket(path, test);
            let members = &mut self.buckets[bucket as usize].members;
            let at = members.len() as u32;
            members.push(Asking { entry, posting: postings.len() as u32 });
            postings.push(Posting { bucket, at });
        }
        postings
    }

    /// The bucket of a test; a new one if there is none.
    fn bucket(&mut self, path: &Path, test: &Test) -> u32 {
        let known = self.paths.iter().find(|(_, lookups)| lookups.path == *path).map(|(number, _)| number);
        let number = known.unwrap_or_else(|| {
            self.paths.insert(PathLookups {
                path: path.clone(),
                points: HashMap::new(),
                longest_point: 0,
                intervals: Intervals::default(),
                null: None,
                never: None,
                bucket_count: 0,
            })
        });
        let lookups = &mut self.paths[number];
        lookups.bucket(test).unwrap_or_else(|| {
            let members = Vec::with_capacity(1);
            let bucket = self.buckets.insert(Bucket { path: number, test: test.clone(), members }) as u32;
            lookups.insert(test, bucket);
            bucket
        })
    }

    /// Removes an entry from where it was put. `moved` hears who has got which place instead.
    pub(super) fn remove(&mut self, entry: u32, postings: &mut [Posting], mut moved: impl FnMut(Asking, u32)) {
        for last in (0..postings.len()).rev() {
            let Posting { bucket, at } = postings[last];
            let members = match bucket {
                EACH_ROW => &mut self.each_row,
                _ => &mut self.buckets[bucket as usize].members,
            };
            members.swap_remove(at as usize);
            if members.len() < members.capacity() / 8 {
                members.shrink_to(2 * members.len());
            }
            match members.get(at as usize) {
                Some(other) if other.entry == entry => postings[other.posting as usize].at = at,
                Some(&other) => moved(other, at),
                None => {}
            }
            if members.is_empty() && bucket != EACH_ROW {
                self.remove_bucket(bucket);
            }
        }
    }

    fn remove_bucket(&mut self, bucket: u32) {
        let Bucket { path, test, .. } = self.buckets.remove(bucket as usize);
        self.paths[path].remove(&test);
        if self.paths[path].bucket_count == 0 {
            self.paths.remove(path);
        }
    }

    /// Would one of these find the row, whose value cannot be read as a key is? None is of an array's elements. `key`: room.
    pub(super) fn would_find(&self, postings: &[Posting], row: &Row<'_>, key: &mut Vec<u8>) -> Result<bool, Failure> {
        let mut found = false;
        for (path, test) in postings.iter().filter_map(|posting| self.behind(posting)) {
            match row.read_key(&path, key) {
                Keyed::Unreadable => return Err(row.unreadable(path.column).into()),
                keyed @ (Keyed::Null | Keyed::Key(_)) => found |= test.holds(&keyed),
            }
        }
        Ok(found)
    }

    /// What a posting looks up; None where it is tried for each row.
    pub(super) fn behind(&self, posting: &Posting) -> Option<(Path, Test)> {
        let bucket = self.buckets.get(posting.bucket as usize)?;
        Some((self.paths[bucket.path].path.clone(), bucket.test.clone()))
    }

    pub(super) fn is_for_each_row(&self, postings: &[Posting]) -> bool {
        postings.iter().any(|posting| posting.bucket == EACH_ROW)
    }
}
