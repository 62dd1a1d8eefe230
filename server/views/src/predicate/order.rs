//! The order of rows, as an ORDER BY has it: expressions of columns, each with its direction.
//!
//! ```text
//! OrderBy …, key, table facts ──▶ Order ──encoded row──▶ Rank, which is less the earlier the row comes
//! ```
//!
//! Invariant: rows of one table stand to each other as PostgreSQL has them (the B-tree operator classes of the types), or the order is
//! refused; rows that are alike in it are told apart by their key, wherever that has an order here.

use std::{cmp::Ordering, sync::Arc};

use super::evaluate::Evaluator;
use super::expression::Expression;
use super::input::{self, Input};
use super::kind::Kind;
use super::parser;
use super::refusal::{Reason, Refusal};
use super::selection::Failure;
use super::syntax::{Syntax, What};
use super::table::TableFacts;
use super::typing::Typing;
use super::value::Value;
use super::{TEXT_BYTES_MAX, numeric::Numeric};

/// Terms of an order.
const TERMS_MAX: usize = 32;

/// A term of an ORDER BY.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrderBy {
    /// A column, or an expression of columns.
    pub expression: String,
    /// From the greatest.
    pub descending: bool,
    /// None: as PostgreSQL has it, last, and where it is descending, first.
    pub nulls_first: Option<bool>,
}

/// An order of a table's rows.
#[derive(Clone, Debug)]
pub struct Order {
    terms: Vec<Expression>,
    directions: Arc<[Direction]>,
    columns: Vec<Input>,
    by_field: Vec<(u32, usize)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Direction {
    descending: bool,
    nulls_first: bool,
    padded: bool,
}

/// Where a row stands in an order. Comparable with others of the same order, whatever row types they are made for.
#[derive(Clone, Debug)]
pub struct Rank {
    values: Box<[Value<'static>]>,
    directions: Arc<[Direction]>,
}

impl Order {
    /// Reads the terms and gives them types. `key`: names of the key's columns, by which the rest is told apart.
    ///
    /// # Errors
    /// The number of the term that is none, or not one that can be ordered by exactly, and why; the place is one in its text.
    pub fn new(by: &[OrderBy], key: &[String], table: &TableFacts) -> Result<Self, (usize, Refusal)> {
        let bytes = by.iter().map(|by| by.expression.len()).sum();
        if bytes > TEXT_BYTES_MAX || by.len() > TERMS_MAX {
            let reason = Reason::TooManyOrders { bytes, max: TEXT_BYTES_MAX, terms_max: TERMS_MAX };
            return Err((0, Refusal::at(0, reason).within("")));
        }
        let mut typing = Typing::new(table, &[]);
        let (mut terms, mut directions) = (Vec::with_capacity(by.len()), Vec::with_capacity(by.len()));
        for (number, OrderBy { expression, descending, nulls_first }) in by.iter().enumerate() {
            let typed = parser::parse(expression).and_then(|(syntax, _)| typing.ordering(&syntax));
            let (kind, tree) = typed.map_err(|refusal| (number, refusal.within(expression)))?;
            terms.push(tree);
            let nulls_first = nulls_first.unwrap_or(*descending);
            directions.push(Direction { descending: *descending, nulls_first, padded: is_padded(kind) });
        }
        for name in key {
            let column = typing.typed(&Syntax::leaf(0, What::Column(vec![name.clone()])));
            if let Ok(column) = column
                && let Some(kind) = column.kind.filter(|kind| has_order(*kind))
            {
                terms.push(column.tree);
                directions.push(Direction { descending: false, nulls_first: false, padded: is_padded(kind) });
            }
        }
        let columns = typing.inputs.iter().filter_map(|&column| Input::of(table, column)).collect::<Vec<_>>();
        let mut by_field: Vec<_> = columns.iter().enumerate().map(|(index, column)| (column.field, index)).collect();
        by_field.sort_unstable();
        Ok(Order { terms, directions: directions.into(), columns, by_field })
    }

    /// Where an encoded row stands, which must be whole: a column that it lacks is NULL.
    ///
    /// # Errors
    /// An expression fails for the row, or the row does not fit the table's description.
    pub fn rank(&self, row: &[u8]) -> Result<Rank, Failure> {
        let inputs = input::read(&self.by_field, &self.columns, row)?;
        let mut evaluator = Evaluator::new(&inputs);
        let values = self.terms.iter().map(|term| evaluator.value(term).map(Value::into_owned));
        Ok(Rank { values: values.collect::<Result<_, _>>()?, directions: Arc::clone(&self.directions) })
    }
}

impl Typing<'_> {
    /// What can be ordered by.
    fn ordering(&mut self, syntax: &Syntax) -> Result<(Kind, Expression), Refusal> {
        let typed = self.typed(syntax)?;
        let typed = self.settled(typed)?;
        let kind = typed.kind.unwrap_or(Kind::Text);
        self.check_comparable(syntax.at, kind, &typed.collation, true)?;
        if !typed.tree.has_column() {
            let what = "an order by what is the same for all rows".to_owned();
            return self.refuse(syntax.at, Reason::Unsupported { what, instead: "name a column" });
        }
        Ok((kind, typed.tree))
    }
}

fn is_padded(kind: Kind) -> bool {
    kind.innermost() == Kind::Bpchar
}

/// As it is, text by its bytes.
fn has_order(kind: Kind) -> bool {
    !matches!(kind.innermost(), Kind::Json | Kind::Jsonb)
}

impl Rank {
    /// About what it takes in memory.
    #[must_use]
    pub fn byte_count(&self) -> usize {
        self.values.iter().map(byte_count).sum()
    }
}

fn byte_count(value: &Value<'_>) -> usize {
    let own = match value {
        Value::Text(text) => text.len(),
        Value::Bytes(bytes) => bytes.len(),
        Value::Numeric(number) => match &**number {
            Numeric::Finite { digits, .. } => usize::try_from(digits.bits() / 8).unwrap_or(usize::MAX),
            Numeric::NaN | Numeric::Infinity { .. } => 0,
        },
        Value::Array(array) => array.elements.iter().map(byte_count).sum(),
        Value::Range(_) => 2 * size_of::<Value<'_>>(),
        // Nothing orders by it.
        Value::Json(_) => 0,
        Value::Null | Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Interval(_) => 0,
    };
    size_of::<Value<'_>>() + own
}

impl Ord for Rank {
    fn cmp(&self, other: &Self) -> Ordering {
        let pairs = self.values.iter().zip(&other.values).zip(&*self.directions);
        let of_pair = |((a, b), by): ((&Value<'_>, &Value<'_>), &Direction)| {
            let nulls = |first| if first { Ordering::Less } else { Ordering::Greater };
            match (a, b) {
                (Value::Null, Value::Null) => Ordering::Equal,
                (Value::Null, _) => nulls(by.nulls_first),
                (_, Value::Null) => nulls(!by.nulls_first),
                (a, b) if by.descending => b.compare(a, by.padded),
                (a, b) => a.compare(b, by.padded),
            }
        };
        pairs.map(of_pair).find(|ordering| ordering.is_ne()).unwrap_or(Ordering::Equal)
    }
}

impl PartialOrd for Rank {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Rank {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Rank {}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use tidegate_schema::wire::{put_len_field, put_varint_field};

    use super::*;
    use crate::predicate::{CollationFacts, ColumnFacts};

    fn facts() -> TableFacts {
        let collation = |name: &str, is_c: bool| CollationFacts {
            name: name.to_owned(),
            is_default: !is_c,
            deterministic: true,
            is_c,
        };
        let column = |name: &str, field, type_oid, collation: Option<CollationFacts>| ColumnFacts {
            name: name.to_owned(),
            field,
            type_oid,
            collation,
            enum_type: None,
        };
        TableFacts {
            schema: "public".to_owned(),
            name: "orders".to_owned(),
            columns: vec![
                column("id", 1, 20, None),
                column("total", 2, 20, None),
                column("name", 3, 25, Some(collation("de_DE", false))),
                column("data", 4, 3802, None),
                column("code", 5, 25, Some(collation("C", true))),
            ],
            default_collation: collation("de_DE", false),
        }
    }

    fn by(expression: &str, descending: bool, nulls_first: Option<bool>) -> OrderBy {
        OrderBy { expression: expression.to_owned(), descending, nulls_first }
    }

    fn row(id: u64, total: Option<u64>, name: &str) -> BytesMut {
        let mut out = BytesMut::new();
        put_varint_field(&mut out, 1, id);
        total.into_iter().for_each(|total| put_varint_field(&mut out, 2, total));
        put_len_field(&mut out, 3, name.as_bytes());
        out
    }

    /// The numbers of three rows as they come.
    fn sorted(by: &[OrderBy]) -> Vec<u64> {
        let order = Order::new(by, &["id".to_owned()], &facts()).expect("an order");
        let rows = [(1, Some(5), "b"), (2, None, "B"), (3, Some(7), "a"), (4, Some(5), "ä")];
        let mut ranked: Vec<_> =
            rows.iter().map(|(id, total, name)| (order.rank(&row(*id, *total, name)).expect("a rank"), *id)).collect();
        ranked.sort();
        ranked.into_iter().map(|(_, id)| id).collect()
    }

    #[test]
    fn rows_come_as_postgresql_orders_them_and_then_by_key() {
        assert_eq!(sorted(&[by("total", false, None)]), [1, 4, 3, 2]);
        assert_eq!(sorted(&[by("total", true, None)]), [2, 3, 1, 4]);
        assert_eq!(sorted(&[by("total", true, Some(false)), by("id", true, None)]), [3, 4, 1, 2]);
        assert_eq!(sorted(&[by("total", false, Some(true)), by("name collate \"C\"", true, None)]), [2, 4, 1, 3]);
        assert_eq!(sorted(&[by("name COLLATE \"C\"", false, None)]), [2, 3, 1, 4]);
        assert_eq!(sorted(&[by("coalesce(total, 6) % 5", false, None)]), [1, 4, 2, 3]);
        assert_eq!(sorted(&[]), [1, 2, 3, 4]);
    }

    #[test]
    fn what_cannot_be_ordered_exactly_is_refused_with_its_place() {
        let refused = |expression: &str| {
            let by = [by("id", false, None), by(expression, false, None)];
            let (number, refusal) = Order::new(&by, &[], &facts()).expect_err("refused");
            assert_eq!(number, 1);
            refusal.reason.to_string()
        };
        assert!(refused("name").contains("under the collation de_DE cannot be evaluated exactly; write COLLATE \"C\""));
        assert!(refused("data").contains("the order of jsonb is not supported"));
        assert!(refused("1").contains("an order by what is the same for all rows"));
        assert!(refused("totl").contains("the table has no column totl"));
        assert!(refused("total desc").contains("does not fit here"));
        assert!(refused("$1").contains("there is no parameter $1"));
        Order::new(&[by("code", false, None)], &[], &facts()).expect("by its bytes");
    }

    #[test]
    fn too_much_is_refused() {
        let many = vec![by("id", false, None); TERMS_MAX + 1];
        assert!(Order::new(&many, &[], &facts()).is_err());
        let failing = Order::new(&[by("total / 0", false, None)], &[], &facts()).expect("it depends on total");
        assert!(failing.rank(&row(1, Some(1), "")).is_err());
        assert!(failing.rank(&row(1, None, "")).is_ok(), "NULL / 0 is NULL");
    }
}
