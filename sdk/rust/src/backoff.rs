//! When to connect again: exponential backoff with full jitter (Marc Brooker, "Exponential Backoff And Jitter", 2015).
//!
//! Pure: randomness is passed in. What the server asks for (RetryInfo) is waited for in full, and the jitter is added.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(10);

/// Failures since the last success.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The connection delivered something.
    pub(crate) fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// How long to wait after a failure. `asked` is the server's wish, `random` lies in 0..1.
    pub(crate) fn failed(&mut self, asked: Duration, random: f64) -> Duration {
        let ceiling = FIRST.saturating_mul(2_u32.saturating_pow(self.failures)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        asked.saturating_add(ceiling.mul_f64(random.clamp(0.0, 1.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_a_limit_and_start_again_after_success() {
        let mut backoff = Backoff::default();
        let delays: Vec<_> = (0..100).map(|_| backoff.failed(Duration::ZERO, 1.0).as_millis()).collect();
        assert_eq!(delays[..8], [100, 200, 400, 800, 1_600, 3_200, 6_400, 10_000]);
        assert!(delays[8..].iter().all(|delay| *delay == 10_000));
        backoff.succeeded();
        assert_eq!(backoff.failed(Duration::ZERO, 1.0), FIRST);
    }

    #[test]
    fn jitter_is_full_and_comes_on_top_of_what_the_server_asks() {
        assert_eq!(Backoff::default().failed(Duration::ZERO, 0.0), Duration::ZERO);
        assert_eq!(Backoff::default().failed(Duration::from_secs(3), 0.5), Duration::from_millis(3_050));
    }
}
