//! What to do after an error.

use std::time::Duration;

/// The answer that every error type gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The same may succeed after this time.
    After(Duration),
    /// The same fails again until someone changes something.
    Never,
    /// Start over: what was received before cannot be continued.
    Reset,
}
