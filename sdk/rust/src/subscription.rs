//! What to receive, and from where on.
//!
//! Names are checked by the server, which knows its tables; this deliberately checks nothing.

use tidegate_proto::v1::{self, selection::What};

use crate::{Op, Shape, Token};

/// Bytes of messages that may be on the way or unread.
const CREDIT_BYTES: u64 = 8 << 20;
/// A row larger than this is refused unless the subscription allows it.
const ROW_BYTES_MAX: usize = 256 << 20;

/// Where to start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// With the next transaction.
    #[default]
    Now,
    /// With the oldest change that the server keeps.
    Earliest,
    /// With the rows that the tables have now, as [`Op::Read`] amid changes, between
    /// [`Event::SnapshotBegin`](crate::Event::SnapshotBegin) and [`Event::SnapshotEnd`](crate::Event::SnapshotEnd).
    Snapshot,
    /// Behind what was received before.
    Token(Token),
}

impl From<Token> for Start {
    fn from(token: Token) -> Self {
        Start::Token(token)
    }
}

/// What to receive: tables of one source, in one order, with one token.
///
/// ```
/// use tidegate_client::{Op, Start, Subscription};
///
/// let orders = Subscription::tables(["public.orders", "!public.orders_archive"])
///     .columns(["id", "total"])
///     .operations([Op::Insert, Op::Update])
///     .source("shop")
///     .from(Start::Earliest);
/// ```
#[derive(Clone, Debug)]
pub struct Subscription {
    source: String,
    selections: Vec<What>,
    start: Start,
    holds: Option<v1::Holds>,
    snapshots: bool,
    credit_bytes: u64,
    row_bytes_max: usize,
}

impl Subscription {
    /// The tables that any of the names or patterns means, in PostgreSQL's identifier syntax: `orders` (schema public),
    /// `shop.orders`, `public.*`, `"Mixed Case".*`, and `!public.audit_*` to leave out. None at all: every table.
    pub fn tables<T: Into<String>>(names: impl IntoIterator<Item = T>) -> Self {
        Self::of(selection(names))
    }

    /// The rows of one table that meet a condition, and exactly the changes that concern them.
    #[must_use]
    pub fn shape(shape: Shape) -> Self {
        Self::of(What::Shape(shape.into_proto()))
    }

    fn of(selection: What) -> Self {
        Subscription {
            source: String::new(),
            selections: vec![selection],
            start: Start::Now,
            holds: None,
            snapshots: false,
            credit_bytes: CREDIT_BYTES,
            row_bytes_max: ROW_BYTES_MAX,
        }
    }

    /// A further selection in the same order; [`columns`](Self::columns) and [`operations`](Self::operations) that
    /// follow are about it alone. Its changes have the next [`Change::selection`](crate::Change::selection).
    #[must_use]
    pub fn and_tables<T: Into<String>>(mut self, names: impl IntoIterator<Item = T>) -> Self {
        self.selections.push(selection(names));
        self
    }

    /// A further selection, of a shape, in the same order: what a transaction does to several is seen together.
    #[must_use]
    pub fn and_shape(mut self, shape: Shape) -> Self {
        self.selections.push(What::Shape(shape.into_proto()));
        self
    }

    /// Only these columns, by exact name, besides the key. Every selected table must have each. A [`Shape`] has columns of its
    /// own, and this replaces them.
    #[must_use]
    pub fn columns<T: Into<String>>(mut self, columns: impl IntoIterator<Item = T>) -> Self {
        let columns = columns.into_iter().map(Into::into).collect();
        match self.newest() {
            What::Tables(tables) => tables.columns = columns,
            What::Shape(shape) => shape.columns = columns,
        }
        self
    }

    /// Only these operations. None at all: every operation. A [`Shape`] has all, and this says nothing to it.
    #[must_use]
    pub fn operations(mut self, operations: impl IntoIterator<Item = Op>) -> Self {
        match self.newest() {
            What::Tables(tables) => tables.operations = operations.into_iter().map(|op| op.to_proto() as i32).collect(),
            What::Shape(_) => {}
        }
        self
    }

    /// The source's name; needed where the server has several.
    #[must_use]
    pub fn source(mut self, source: impl Into<String>) -> Self {
        self.source = source.into();
        self
    }

    /// Where to start; [`Start::Now`] unless said. A [`Token`] will do as it is.
    #[must_use]
    pub fn from(mut self, start: impl Into<Start>) -> Self {
        self.start = start.into();
        self
    }

    /// Also receive snapshots of the selected tables, or of parts of them, that someone starts while the subscription is open
    /// ([`Client::start_snapshot`](crate::Client::start_snapshot), `tidegate snapshot start`). Unless said, they are not received.
    #[must_use]
    pub fn snapshots(mut self, receive: bool) -> Self {
        self.snapshots = receive;
        self
    }

    /// Bytes of messages that the server may send ahead of what the program has taken; 8 MiB unless said. When they are
    /// used up, the server holds this subscriber's position and no memory.
    #[must_use]
    pub fn credit_bytes(mut self, bytes: u64) -> Self {
        self.credit_bytes = bytes.max(1);
        self
    }

    /// Rows larger than this, in encoded bytes, end the stream with an error; 256 MiB unless said.
    #[must_use]
    pub fn row_bytes_max(mut self, bytes: usize) -> Self {
        self.row_bytes_max = bytes;
        self
    }

    /// What is held of it already, of its first selection and for a start at a snapshot.
    pub(crate) fn holding(mut self, holds: Option<v1::Holds>) -> Self {
        self.holds = holds;
        self
    }

    pub(crate) fn credit(&self) -> u64 {
        self.credit_bytes
    }

    pub(crate) fn row_limit(&self) -> usize {
        self.row_bytes_max
    }

    pub(crate) fn start(&self) -> &Start {
        &self.start
    }

    /// The request that opens it at `start`.
    pub(crate) fn to_proto(&self, id: u32, start: &Start) -> v1::Subscribe {
        let from = match start {
            Start::Now => v1::start::From::At(v1::start::Point::Now as i32),
            Start::Earliest => v1::start::From::At(v1::start::Point::Earliest as i32),
            Start::Snapshot => v1::start::From::At(v1::start::Point::Snapshot as i32),
            Start::Token(token) => v1::start::From::Token(token.to_string()),
        };
        let what = |what| v1::Selection { what: Some(what) };
        v1::Subscribe {
            subscription: id,
            source: self.source.clone(),
            selections: self.selections.iter().cloned().map(what).collect(),
            start: Some(v1::Start { from: Some(from) }),
            credit_bytes: self.credit_bytes,
            group: String::new(),
            snapshots: self.snapshots,
            // It is alone on its stream.
            shared_progress: false,
            differences: true,
            holds: if *start == Start::Snapshot { self.holds.iter().cloned().collect() } else { Vec::new() },
        }
    }

    fn newest(&mut self) -> &mut What {
        self.selections.last_mut().expect("a subscription is made with one selection")
    }
}

fn selection<T: Into<String>>(names: impl IntoIterator<Item = T>) -> What {
    What::Tables(v1::TableSelection { names: names.into_iter().map(Into::into).collect(), ..Default::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_and_operations_are_of_the_selection_before_them() {
        let request = Subscription::tables(["a"])
            .columns(["x"])
            .and_tables(["b"])
            .operations([Op::Delete])
            .source("shop")
            .to_proto(1, &Start::Earliest);
        let tables: Vec<_> = request
            .selections
            .into_iter()
            .map(|selection| match selection.what.expect("set") {
                v1::selection::What::Tables(tables) => (tables.names, tables.columns, tables.operations),
                v1::selection::What::Shape(shape) => unreachable!("tables were selected, not {shape:?}"),
            })
            .collect();
        let text = |text: &str| vec![text.to_owned()];
        assert_eq!(tables, [(text("a"), text("x"), vec![]), (text("b"), vec![], vec![v1::change::Op::Delete as i32])]);
        assert_eq!(request.start.and_then(|start| start.from), Some(v1::start::From::At(1)));
    }
}
