//! A tree without types becomes an expression with types, by PostgreSQL's rules (`src/backend/parser/parse_expr.c`,
//! `parse_coerce.c`, `parse_collate.c`).
//!
//! Invariants: what is accepted means in PostgreSQL what it means here; what has no columns is evaluated here, and one that
//! fails is refused, as PostgreSQL fails when it plans. The expression has at most [`NODES_MAX`] nodes, though operands are
//! repeated where PostgreSQL's meaning repeats them.

use std::borrow::Cow;
use std::rc::Rc;

use super::collation::{self, Collation};
use super::evaluate::Evaluator;
use super::expression::{Expression, Function};
use super::kind::Kind;
use super::literal;
use super::numeric::Numeric;
use super::refusal::{Reason, Refusal};
use super::signature;
use super::syntax::{Sign, Syntax, TypeName, What};
use super::table::TableFacts;
use super::value::Value;

/// Nodes of an expression and values of its lists.
pub(super) const NODES_MAX: usize = 10_000;

/// An expression, what is known of its type, and its collation.
#[derive(Clone, Debug)]
pub(super) struct Typed {
    pub(super) at: usize,
    /// None of a string, NULL or parameter whose type is not decided.
    pub(super) kind: Option<Kind>,
    pub(super) tree: Expression,
    /// The parameter that this is.
    pub(super) parameter: Option<usize>,
    pub(super) collation: Collation,
}

/// A parameter's value, and its type as soon as that is known.
#[derive(Clone, Debug)]
pub(super) struct Given {
    pub(super) kind: Option<Kind>,
    /// Was it declared as an array?
    pub(super) array: bool,
    pub(super) text: Option<String>,
    pub(super) used: bool,
    /// Is it an enum that no column of this table has?
    pub(super) is_foreign: bool,
}

/// A table, and what a condition calls it where that is not its name.
#[derive(Clone)]
pub(super) struct Scope<'t> {
    pub(super) table: &'t TableFacts,
    pub(super) alias: Option<String>,
}

pub(super) struct Typing<'t> {
    pub(super) table: &'t TableFacts,
    /// What the condition calls the table, where that is not its name.
    pub(super) alias: Option<String>,
    /// Of the conditions that this one, of a subquery, stands in; the outermost first.
    pub(super) around: Vec<Scope<'t>>,
    /// What subqueries may read.
    pub(super) others: &'t [TableFacts],
    pub(super) parameters: Vec<Given>,
    /// Indexes of the table's columns, in the order in which the condition names them first.
    pub(super) inputs: Vec<usize>,
    /// How often the condition names a column, up to here.
    pub(super) columns_named: usize,
    /// How many nodes there may still be.
    pub(super) room: usize,
}

impl Typed {
    pub(super) fn known(at: usize, kind: Kind, tree: Expression) -> Self {
        Typed { at, kind: Some(kind), tree, parameter: None, collation: Collation::Default }
    }

    pub(super) fn with(self, collation: Collation) -> Self {
        Typed { collation, ..self }
    }
}

impl<'t> Typing<'t> {
    pub(super) fn new(table: &'t TableFacts, others: &'t [TableFacts]) -> Self {
        let (alias, around, parameters, inputs) = (None, Vec::new(), Vec::new(), Vec::new());
        Typing { table, alias, around, others, parameters, inputs, columns_named: 0, room: NODES_MAX }
    }

    pub(super) fn refuse<T>(&self, at: usize, reason: Reason) -> Result<T, Refusal> {
        Err(Refusal::at(at, reason))
    }

    pub(super) fn name(&self, kind: Option<Kind>) -> String {
        kind.map_or_else(|| "unknown".to_owned(), |kind| self.table.kind_name(kind))
    }

    /// Another use of the same operand.
    pub(super) fn again(&mut self, typed: &Typed) -> Result<Typed, Refusal> {
        self.charge(typed.at, typed.tree.size())?;
        Ok(typed.clone())
    }

    pub(super) fn charge(&mut self, at: usize, nodes: usize) -> Result<(), Refusal> {
        match self.room.checked_sub(nodes) {
            Some(room) => self.room = room,
            None => return self.refuse(at, Reason::TooLarge { max: NODES_MAX }),
        }
        Ok(())
    }

    /// The type of any expression. One without columns becomes a constant.
    pub(super) fn typed(&mut self, syntax: &Syntax) -> Result<Typed, Refusal> {
        self.charge(syntax.at, 1)?;
        let typed = self.as_written(syntax)?;
        self.folded(typed)
    }

    fn as_written(&mut self, syntax: &Syntax) -> Result<Typed, Refusal> {
        let at = syntax.at;
        match &syntax.what {
            What::Null => Ok(self.unknown(at, None)),
            What::Text(text) => Ok(self.unknown(at, Some(text))),
            What::Bool(value) => Ok(constant(at, Kind::Bool, Value::Bool(*value))),
            What::Number(digits) => self.number(at, digits),
            What::Parameter(number) => self.parameter(at, *number),
            What::Column(name) => self.column(at, name),
            What::Cast(operand, type_name) => self.cast(operand, type_name),
            What::Collate(operand, name) => self.collate(at, operand, name),
            What::Sign(sign, operand) => self.sign(at, *sign, operand),
            What::Compare(op, operands) => self.compare_operands(at, *op, operands),
            What::Arithmetic(op, operands) => self.arithmetic(at, *op, operands),
            What::And(operands) => self.logical(at, operands, Expression::And),
            What::Or(operands) => self.logical(at, operands, Expression::Or),
            What::Not(operand) => self.boolean_over(at, operand, "NOT", Expression::Not),
            What::Is(truth, operand) => {
                self.boolean_over(at, operand, "IS TRUE, FALSE and UNKNOWN", |operand| Expression::Is(*truth, operand))
            }
            What::IsNull(operand) => {
                let operand = self.typed(operand)?;
                let operand = self.settled(operand)?;
                Ok(Typed::known(at, Kind::Bool, Expression::IsNull(Box::new(operand.tree))))
            }
            What::RowIsNull(values, negated) => self.row_is_null(at, values, *negated),
            What::Distinct(operands) => self.distinct(at, operands),
            What::In(operand, values, negated) => self.in_list(at, operand, values, *negated),
            What::InQuery(operand, query, negated) => self.in_query(at, operand, query, *negated),
            What::Between { operand, bounds, symmetric, negated } => {
                self.between(at, operand, bounds, (*symmetric, *negated))
            }
            What::Like { operands, escape, fold, negated } => {
                self.like(at, operands, escape.as_deref(), (*fold, *negated))
            }
            What::LikeEach { operands, fold, negated, all } => self.like_each(at, operands, (*fold, *negated), *all),
            What::Regex { operands, similar, fold, negated } => {
                self.regex(at, operands, similar.as_ref(), (*fold, *negated))
            }
            What::Quantified { operands, op, all } => self.quantified(at, operands, *op, *all),
            What::Array(values) => {
                let (kind, values) = self.array_values(at, values)?;
                self.array_of(at, kind, values)
            }
            What::Row(_) => self.no_such_row(at),
            What::Subscript { operand, subscripts, is_slice } => self.subscript((at, operand), subscripts, *is_slice),
            What::Call(name, operands) => self.call(at, name, operands),
            What::Operator(symbol, operands) => self.operator(at, symbol, operands),
            What::Case { operand, arms, otherwise } => self.case(at, operand.as_deref(), arms, otherwise.as_deref()),
            What::Coalesce(operands) => self.coalesce(at, operands),
            What::Nullif(operands) => self.nullif(at, operands),
            What::Extreme { greatest, operands } => self.extreme(at, *greatest, operands),
        }
    }

    fn unknown(&self, at: usize, text: Option<&str>) -> Typed {
        let value = text.map_or(Value::Null, |text| Value::Text(Cow::Owned(text.to_owned())));
        let tree = Expression::Constant(Kind::Text, value);
        Typed { at, kind: None, tree, parameter: None, collation: Collation::Default }
    }

    /// The narrowest of int4, int8 and numeric.
    fn number(&self, at: usize, digits: &str) -> Result<Typed, Refusal> {
        if let Ok(value) = digits.parse::<i32>() {
            return Ok(constant(at, Kind::Int4, Value::Int(value.into())));
        }
        if let Ok(value) = digits.parse::<i64>() {
            return Ok(constant(at, Kind::Int8, Value::Int(value)));
        }
        match Numeric::parse(digits) {
            Some(number) => Ok(constant(at, Kind::Numeric, Value::Numeric(Cow::Owned(number)))),
            None => {
                let instead = "write fewer digits, or a smaller exponent";
                self.refuse(at, Reason::Malformed { type_name: "numeric".to_owned(), instead })
            }
        }
    }

    /// The parameter of this number, from 1.
    pub(super) fn given(&mut self, at: usize, number: usize) -> Result<&mut Given, Refusal> {
        let given = self.parameters.len();
        match self.parameters.get_mut(number - 1) {
            None => Err(Refusal::at(at, Reason::UnknownParameter { number, given })),
            Some(given) if given.is_foreign => {
                let what = format!("${number}, an enum of another table,");
                let instead = "give its value once more, as a parameter of its own";
                Err(Refusal::at(at, Reason::Unsupported { what, instead }))
            }
            Some(given) => Ok(given),
        }
    }

    fn parameter(&mut self, at: usize, number: usize) -> Result<Typed, Refusal> {
        let given = self.given(at, number)?;
        given.used = true;
        let (kind, array, text) = (given.kind, given.array, given.text.clone());
        if array {
            let Some(kind) = kind.and_then(Kind::array) else { return self.no_such_array(at) };
            let unknown = self.unknown(at, text.as_deref());
            return self.of_text(unknown, kind);
        }
        let unknown = Typed { parameter: Some(number - 1), ..self.unknown(at, text.as_deref()) };
        match kind {
            Some(kind) => self.of_text(unknown, kind),
            None => Ok(unknown),
        }
    }

    pub(super) fn column(&mut self, at: usize, name: &[String]) -> Result<Typed, Refusal> {
        let table = self.table;
        let Some(index) = place(table, self.alias.as_deref(), name) else {
            let has = |scope: &Scope<'_>| place(scope.table, scope.alias.as_deref(), name).is_some();
            let (is_around, name) = (self.around.iter().any(has), name.join("."));
            if is_around {
                return self.refuse(at, Reason::Correlated { name, table: table.name.clone() });
            }
            let columns = table.columns.iter().map(|column| column.name.clone()).collect();
            return self.refuse(at, Reason::UnknownColumn { name, columns });
        };
        let column = &table.columns[index];
        let Some(kind) = table.kind(column) else {
            let what = format!("the column {}, whose type has the OID {},", column.name, column.type_oid);
            let instead = "compare columns of the types that the documentation of conditions lists";
            return self.refuse(at, Reason::Unsupported { what, instead });
        };
        self.columns_named += 1;
        let input = self.inputs.iter().position(|&input| input == index).unwrap_or_else(|| {
            self.inputs.push(index);
            self.inputs.len() - 1
        });
        let collation = match &column.collation {
            Some(facts) if !facts.is_default => Collation::Column(Rc::new(facts.clone())),
            Some(_) | None => Collation::Default,
        };
        Ok(Typed::known(at, kind, Expression::Column(input)).with(collation))
    }

    /// An unknown constant with this type.
    pub(super) fn of_text(&mut self, unknown: Typed, kind: Kind) -> Result<Typed, Refusal> {
        let value = match &unknown.tree {
            Expression::Constant(_, Value::Text(text)) => match literal::constant(self.table, kind, text) {
                Ok(value) => value,
                Err(instead) => {
                    let type_name = self.table.kind_name(kind);
                    return self.refuse(unknown.at, Reason::Malformed { type_name, instead });
                }
            },
            _ => Value::Null,
        };
        if matches!(value, Value::Json(_) | Value::Array(_)) {
            self.charge(unknown.at, Expression::Constant(kind, value.clone()).size())?;
        }
        if let Some(number) = unknown.parameter {
            let first = *self.parameters[number].kind.get_or_insert(kind);
            if first != kind {
                let (first, second) = (self.table.kind_name(first), self.table.kind_name(kind));
                return self.refuse(unknown.at, Reason::InconsistentParameter { number: number + 1, first, second });
            }
        }
        let collation = if kind.is_collatable() { unknown.collation } else { Collation::Default };
        Ok(Typed { parameter: None, ..constant(unknown.at, kind, value) }.with(collation))
    }

    /// What is still unknown is text.
    pub(super) fn settled(&mut self, typed: Typed) -> Result<Typed, Refusal> {
        if typed.kind.is_none() { self.of_text(typed, Kind::Text) } else { Ok(typed) }
    }

    /// With this type, by a cast that PostgreSQL applies by itself.
    pub(super) fn coerced(&mut self, typed: Typed, to: Kind, what: &'static str) -> Result<Typed, Refusal> {
        match typed.kind {
            None => self.of_text(typed, to),
            Some(kind) if kind == to => Ok(typed),
            Some(kind) if kind.casts_implicitly_to(to) && kind.casts_exactly_to(to) => {
                self.cast_over(typed, kind, to, Vec::new())
            }
            Some(kind) => {
                let (found, expected) = (self.table.kind_name(kind), self.table.kind_name(to));
                self.refuse(typed.at, Reason::WrongType { what, found, expected })
            }
        }
    }

    fn cast_over(&mut self, typed: Typed, from: Kind, to: Kind, modifiers: Vec<u32>) -> Result<Typed, Refusal> {
        self.charge(typed.at, 1)?;
        let collation = if from.is_collatable() && to.is_collatable() { typed.collation } else { Collation::Default };
        let tree = Expression::Strict(Function::Cast { from, to, modifiers }, vec![typed.tree]);
        Ok(self.folded(Typed::known(typed.at, to, tree))?.with(collation))
    }

    fn cast(&mut self, operand: &Syntax, name: &TypeName) -> Result<Typed, Refusal> {
        let (to, modifiers) = self.type_named(name)?;
        if !name.array {
            let operand = self.typed(operand)?;
            return self.cast_typed(operand, to, modifiers);
        }
        let Some(array) = to.array() else { return self.no_such_array(name.at) };
        if let What::Array(values) = &operand.what {
            let cast = |value: &Syntax| {
                let value = self.typed(value)?;
                self.cast_typed(value, to, Vec::new())
            };
            let values = values.iter().map(cast).collect::<Result<_, _>>()?;
            return self.array_of(operand.at, to, values);
        }
        let operand = self.typed(operand)?;
        self.cast_typed(operand, array, modifiers)
    }

    pub(super) fn cast_typed(&mut self, operand: Typed, to: Kind, modifiers: Vec<u32>) -> Result<Typed, Refusal> {
        let typed = match operand.kind {
            None => self.of_text(operand, to)?,
            Some(from) if from == to => operand,
            Some(from) if from.casts_exactly_to(to) => return self.cast_over(operand, from, to, modifiers),
            Some(from) => {
                let what = format!("a cast from {} to {}", self.table.kind_name(from), self.table.kind_name(to));
                let instead =
                    "its result depends on settings of the session, or it is not there; compare the value itself";
                return self.refuse(operand.at, Reason::Unsupported { what, instead });
            }
        };
        if modifiers.is_empty() { Ok(typed) } else { self.cast_over(typed, to, to, modifiers) }
    }

    pub(super) fn type_named(&self, name: &TypeName) -> Result<(Kind, Vec<u32>), Refusal> {
        let (last, schema) = name.name.split_last().expect("a name has a part");
        let shipped = match schema {
            [] if !name.quoted => Kind::of_name(last),
            [schema] if schema == "pg_catalog" => Kind::of_name(last).filter(|kind| kind.name() == last),
            _ => None,
        };
        let named =
            |facts: &super::table::EnumFacts| facts.name == *last && schema.iter().all(|name| *name == facts.schema);
        let by_enum = || {
            let column = self.table.columns.iter().position(|column| column.enum_type.as_ref().is_some_and(named))?;
            Some(Kind::Enum(column))
        };
        let Some(kind) = shipped.or_else(by_enum).filter(|_| schema.len() <= 1) else {
            let what = format!("the type {}", name.name.join("."));
            let instead = "conditions know the types that their documentation lists, and enums of the table's columns";
            return self.refuse(name.at, Reason::Unsupported { what, instead });
        };
        let mut modifiers = name.modifiers.clone();
        // Without a length, char(1) is meant, unless it is said in PostgreSQL's own word.
        if kind == Kind::Bpchar && last != "bpchar" && modifiers.is_empty() {
            modifiers.push(1);
        }
        let valid = match (kind, modifiers.as_slice()) {
            (_, []) => true,
            (Kind::Varchar | Kind::Bpchar, [length]) => (1..=10_485_760).contains(length),
            (Kind::Numeric, [precision]) => (1..=1_000).contains(precision),
            (Kind::Numeric, [precision, scale]) => (1..=1_000).contains(precision) && scale <= precision,
            _ => false,
        };
        if !valid || (name.array && !modifiers.is_empty()) {
            let what = format!("{} with these numbers in parentheses", name.name.join("."));
            return self.refuse(name.at, Reason::Unsupported { what, instead: "leave them out" });
        }
        Ok((kind, modifiers))
    }

    fn sign(&mut self, at: usize, sign: Sign, operand: &Syntax) -> Result<Typed, Refusal> {
        if sign == Sign::Minus
            && let What::Number(digits) = &operand.what
        {
            // The sign belongs to the constant, so that the least number of a type is of that type.
            return self.number(at, &format!("-{digits}"));
        }
        let operand = self.typed(operand)?;
        if operand.kind == Some(Kind::Interval) && sign == Sign::Minus {
            return self.chosen(at, signature::named("-", true), vec![operand]);
        }
        let Some(kind) = operand.kind.filter(|kind| kind.is_number()) else {
            let (what, found) = ("a sign", self.name(operand.kind));
            return self.refuse(at, Reason::WrongType { what, found, expected: "a number".to_owned() });
        };
        if sign == Sign::Plus {
            return Ok(operand);
        }
        self.folded(Typed::known(at, kind, Expression::Strict(Function::Negate(kind), vec![operand.tree])))
    }

    fn collate(&mut self, at: usize, operand: &Syntax, name: &[String]) -> Result<Typed, Refusal> {
        let Some(sql) = collation::named(name) else {
            let what = format!("the collation {}", name.join("."));
            return self
                .refuse(at, Reason::Unsupported { what, instead: "write COLLATE \"C\", which orders by bytes" });
        };
        let operand = self.typed(operand)?;
        // Its place decides the type, as without COLLATE.
        let Some(kind) = operand.kind else { return Ok(operand.with(collation::written(sql))) };
        if !kind.is_text() {
            let (found, expected) = (self.table.kind_name(kind), "text".to_owned());
            return self.refuse(at, Reason::WrongType { what: "COLLATE", found, expected });
        }
        let tree = Expression::Strict(Function::Collate(sql), vec![operand.tree]);
        Ok(Typed::known(at, kind, tree).with(collation::written(sql)))
    }

    /// What has no columns is evaluated; a strict function of a constant NULL is NULL, whatever else would fail.
    pub(super) fn folded(&mut self, typed: Typed) -> Result<Typed, Refusal> {
        let Some(kind) = typed.kind.filter(|_| !typed.tree.is_constant()) else { return Ok(typed) };
        let is_null = match &typed.tree {
            // PostgreSQL looks at these row by row, and at what stands around them.
            Expression::Strict(Function::Subscript | Function::Slice(_), operands) => operands[0].is_null(),
            Expression::Strict(_, operands) => operands.iter().any(Expression::is_null),
            _ => false,
        };
        let value = if is_null {
            Value::Null
        } else if typed.tree.has_column() {
            return Ok(typed);
        } else {
            let mut evaluator = Evaluator::new(&[]);
            match evaluator.value(&typed.tree) {
                Ok(value) => value.into_owned(),
                Err(error) => return self.refuse(typed.at, Reason::AlwaysFails { error }),
            }
        };
        let tree = Expression::Constant(kind, value);
        // What it is made of has been charged.
        self.charge(typed.at, tree.size().saturating_sub(typed.tree.size()))?;
        Ok(Typed { tree, ..typed })
    }
}

/// The index of the column that a name means, if it is one of this table.
fn place(table: &TableFacts, alias: Option<&str>, name: &[String]) -> Option<usize> {
    let (last, before) = name.split_last().expect("a name has a part");
    let is_table = match (before, alias) {
        ([], _) => true,
        ([name], Some(alias)) => name == alias,
        ([name], None) => *name == table.name,
        ([schema, name], None) => *schema == table.schema && *name == table.name,
        _ => false,
    };
    table.columns.iter().position(|column| column.name == *last).filter(|_| is_table)
}

pub(super) fn constant(at: usize, kind: Kind, value: Value<'static>) -> Typed {
    Typed::known(at, kind, Expression::Constant(kind, value))
}
