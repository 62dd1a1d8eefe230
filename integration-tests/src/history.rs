//! What was committed, in order, in a form in which two accounts of it can be compared.
//!
//! Values are text; long ones are replaced by their length and a checksum, so that a million rows fit into memory.

use std::fmt;

use anyhow::{Result, bail};

/// Transactions in commit order. Those without changes are left out: whether they are announced differs between
/// versions of PostgreSQL.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    transactions: Vec<Transaction>,
}

/// One transaction, or one message outside of transactions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// End of its commit record, or the message's own.
    pub lsn: u64,
    /// Microseconds since 1970; 0 for a message.
    pub commit_time_us: i64,
    /// Top-level xid; 0 for a message.
    pub xid: u32,
    /// In order.
    pub changes: Vec<Change>,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// As Tidegate prints it.
    pub position: String,
    /// Its last part.
    pub ordinal: u32,
    /// Operation and table, or the message.
    pub what: String,
    /// The new row.
    pub row: Row,
    /// The old one.
    pub old: Row,
}

/// A row as far as it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Row {
    /// Not at all.
    None,
    /// The key's columns.
    Key(Vec<(String, Value)>),
    /// Every column.
    Full(Vec<(String, Value)>),
}

/// A column's value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Value {
    /// NULL.
    Null,
    /// Not sent, because the update left it as it was.
    Unchanged,
    /// PostgreSQL's text, possibly shortened.
    Text(String),
}

/// Ordinal of what stands outside of transactions.
const MESSAGE_ORDINAL: u32 = 1 << 30;

impl History {
    /// Appends a transaction, unless it is empty.
    pub fn push(&mut self, transaction: Transaction) {
        if !transaction.changes.is_empty() {
            self.transactions.push(transaction);
        }
    }

    /// All of it.
    #[must_use]
    pub fn transactions(&self) -> &[Transaction] {
        &self.transactions
    }

    /// Number of changes.
    #[must_use]
    pub fn change_count(&self) -> usize {
        self.transactions.iter().map(|transaction| transaction.changes.len()).sum()
    }

    /// Is this account the same as the oracle's?
    ///
    /// # Errors
    /// The first difference, with what stands around it.
    pub fn must_equal(&self, oracle: &History) -> Result<()> {
        let pairs = self.transactions.iter().zip(&oracle.transactions);
        let same = pairs.take_while(|(ours, theirs)| ours == theirs).count();
        if same == self.transactions.len() && same == oracle.transactions.len() {
            return Ok(());
        }
        let around = |history: &History| {
            let lines: Vec<String> =
                history.transactions.iter().skip(same.saturating_sub(1)).take(3).map(ToString::to_string).collect();
            if lines.is_empty() { "  (ends before)".to_owned() } else { lines.join("\n") }
        };
        bail!(
            "{same} transactions are equal, of {} received and {} in the oracle; then\nreceived:\n{}\noracle:\n{}",
            self.transactions.len(),
            oracle.transactions.len(),
            around(self),
            around(oracle)
        )
    }
}

impl Transaction {
    /// A message outside of transactions, whose record starts at `message_lsn`.
    #[must_use]
    pub fn message(message_lsn: u64, what: String) -> Self {
        let lsn = message_lsn + 1;
        let ordinal = MESSAGE_ORDINAL;
        let change = Change { position: position(lsn, ordinal), ordinal, what, row: Row::None, old: Row::None };
        Transaction { lsn, commit_time_us: 0, xid: 0, changes: vec![change] }
    }

    pub(crate) fn next_ordinal(&self) -> u32 {
        u32::try_from(self.changes.len()).unwrap_or(u32::MAX).saturating_add(1)
    }
}

impl fmt::Display for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "  transaction ending at {:X}/{:X}, xid {}, {} changes, committed at {} us",
            self.lsn >> 32,
            self.lsn & 0xFFFF_FFFF,
            self.xid,
            self.changes.len(),
            self.commit_time_us
        )?;
        for change in self.changes.iter().take(12) {
            writeln!(f, "    {} {} {:?} old {:?}", change.position, change.what, change.row, change.old)?;
        }
        Ok(())
    }
}

/// A position as Tidegate prints it.
pub(crate) fn position(lsn: u64, ordinal: u32) -> String {
    format!("{:X}/{:X}:{ordinal}", lsn >> 32, lsn & 0xFFFF_FFFF)
}

/// A long text by its length and FNV-1a checksum, a short one as it is.
pub(crate) fn shorten(text: &str) -> String {
    if text.len() <= 64 {
        return text.to_owned();
    }
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    format!("{} bytes, {:016x}", text.len(), text.bytes().fold(0xcbf2_9ce4_8422_2325, step))
}

/// Lower-case hexadecimal digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
