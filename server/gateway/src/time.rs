//! Microseconds since 1970, as the model counts time, to and from protobuf's Timestamp.

use prost::Message as _;
use tidegate_proto::v1;
use tidegate_schema::event_body;

/// A time as protobuf has it, from microseconds since 1970.
pub(crate) fn timestamp(us: i64) -> prost_types::Timestamp {
    let nanos = i32::try_from(us.rem_euclid(1_000_000) * 1000).expect("less than a second");
    prost_types::Timestamp { seconds: us.div_euclid(1_000_000), nanos }
}

/// A time in microseconds since 1970, from protobuf's form.
pub(crate) fn microseconds(time: &prost_types::Timestamp) -> i64 {
    time.seconds.saturating_mul(1_000_000).saturating_add(i64::from(time.nanos) / 1000)
}

/// The commit time that a Begin states, in microseconds since 1970.
pub(crate) fn commit_time_us(begin: &[u8]) -> Option<i64> {
    v1::Begin::decode(event_body(begin).ok()?).ok()?.commit_time.as_ref().map(microseconds)
}

#[cfg(test)]
mod tests {
    use super::{microseconds, timestamp};

    #[test]
    fn times_before_1970_too_are_read_back() {
        for us in [0, 1, -1, 1_750_000_000_123_456, -62_135_596_800_000_000] {
            assert_eq!(microseconds(&timestamp(us)), us);
        }
    }
}
