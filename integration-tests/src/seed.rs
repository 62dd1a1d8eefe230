//! What a randomised test is told by the environment: its seed, which is printed, to run the same again, and how much to do.

use std::str::FromStr;

use rand::{RngExt, SeedableRng, rngs::StdRng};

/// A seed from which any number of independent generators can be made.
#[derive(Clone, Copy, Debug)]
pub struct Seed(u64);

impl Seed {
    /// The seed of `TIDEGATE_TEST_SEED`, or a new one. Prints it either way: a failed test's output then tells it.
    #[must_use]
    pub fn from_environment() -> Self {
        let given = std::env::var("TIDEGATE_TEST_SEED").ok().and_then(|text| text.parse().ok());
        let seed = given.unwrap_or_else(|| rand::rng().random_range(0..1_000_000_u64));
        println!("seed {seed}: run again with TIDEGATE_TEST_SEED={seed}");
        Seed(seed)
    }

    /// The generator of one part of the test; parts do not disturb each other's numbers.
    #[must_use]
    pub fn generator(self, part: u64) -> StdRng {
        StdRng::seed_from_u64(self.0.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(part))
    }
}

/// What the environment says of a test's size, such as `TIDEGATE_TEST_ROUNDS`; else the usual.
#[must_use]
pub fn asked_for<T: FromStr>(variable: &str, usual: T) -> T {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}
