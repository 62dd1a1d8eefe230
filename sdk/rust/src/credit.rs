//! How many bytes the server may send: what the program has taken is granted again, in halves of the whole.
//!
//! Invariant: granted and not yet consumed never exceeds the subscription's credit, so that a program that stops reading
//! stops the server after that many bytes. Only batches of changes use credit; all other messages pass without.

/// The account of one connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Credit {
    whole: u64,
    consumed: u64,
}

impl Credit {
    /// After a Subscribe that offers `whole` bytes.
    pub(crate) fn new(whole: u64) -> Self {
        Credit { whole, consumed: 0 }
    }

    /// The program has taken a message of this many bytes.
    pub(crate) fn consume(&mut self, bytes: usize) {
        self.consumed += bytes as u64;
    }

    /// What to grant now, once it is half of the whole.
    pub(crate) fn due(&self) -> Option<u64> {
        (self.consumed > 0 && self.consumed >= self.whole / 2).then_some(self.consumed)
    }

    /// It was granted.
    pub(crate) fn granted(&mut self, bytes: u64) {
        self.consumed -= bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_credit_is_granted_back_when_it_is_consumed() {
        let mut credit = Credit::new(1_000);
        credit.consume(499);
        assert_eq!(credit.due(), None);
        credit.consume(201);
        assert_eq!(credit.due(), Some(700));
        credit.granted(700);
        assert_eq!(credit.due(), None);
    }

    #[test]
    fn the_smallest_credit_does_not_stall() {
        let mut credit = Credit::new(1);
        credit.consume(1);
        assert_eq!(credit.due(), Some(1));
    }
}
