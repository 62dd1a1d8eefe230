//! The condition as SQL, from our own tree.
//!
//! Invariants: it means the same whatever the session's `search_path`, `standard_conforming_strings`, DateStyle and TimeZone
//! are: operators and types are named with `pg_catalog`, constants are cast to their type and written in the form that all
//! settings read alike, and all is in parentheses. Nothing of the user's text is passed on.
//!
//! The normal form is the same SQL, with the operands of AND and OR and the values of IN in order and once, and comparisons
//! turned towards `<`. That is allowed since AND and OR do not depend on the order of their operands.

use super::comparison::Comparison;
use super::expression::{Expression, Function, Member, Quantified};
use super::kind::Kind;
use super::moment;
use super::range::{Bound, Range};
use super::signature::Signature;
use super::table::TableFacts;
use super::value::Value;

/// Prints expressions about one table.
pub(super) struct Printer<'p> {
    pub(super) table: &'p TableFacts,
    /// Indexes of columns, by input.
    pub(super) inputs: &'p [usize],
    pub(super) normal: bool,
}

impl Printer<'_> {
    pub(super) fn sql(&self, expression: &Expression) -> String {
        let mut out = String::new();
        self.print(&mut out, expression);
        out
    }

    fn print(&self, out: &mut String, expression: &Expression) {
        match expression {
            Expression::Constant(kind, value) => self.constant(out, *kind, value),
            Expression::Column(input) => quote_name(out, &self.table.columns[self.inputs[*input]].name),
            Expression::Strict(function, operands) => self.strict(out, function, operands),
            Expression::And(operands) => self.logical(out, operands, " AND "),
            Expression::Or(operands) => self.logical(out, operands, " OR "),
            Expression::Not(operand) => self.around(out, "(NOT ", operand, ")"),
            Expression::IsNull(operand) => self.around(out, "(", operand, " IS NULL)"),
            Expression::Is(truth, operand) => {
                let test = match truth {
                    Some(true) => " IS TRUE)",
                    Some(false) => " IS FALSE)",
                    None => " IS UNKNOWN)",
                };
                self.around(out, "(", operand, test);
            }
            Expression::Quantified(quantified) => self.quantified(out, quantified),
            Expression::QuantifiedArray { all, op, operands, .. } => {
                self.around(out, "(", &operands[0], " OPERATOR(pg_catalog.");
                out.push_str(op.symbol());
                self.around(out, if *all { ") ALL (" } else { ") ANY (" }, &operands[1], "))");
            }
            Expression::Member(Member { subquery, operand, .. }) => {
                self.around(out, "(", operand, " OPERATOR(pg_catalog.=) ANY (");
                out.push_str(if self.normal { subquery.normal_form() } else { subquery.sql() });
                out.push_str("))");
            }
            Expression::Case { arms, otherwise } => {
                out.push_str("(CASE");
                for (when, then) in arms {
                    self.around(out, " WHEN ", when, " THEN ");
                    self.print(out, then);
                }
                self.around(out, " ELSE ", otherwise, " END)");
            }
            Expression::Coalesce(operands) => self.call(out, "COALESCE", operands),
            Expression::Array(kind, operands) => {
                let elements: Vec<String> = operands.iter().map(|operand| self.sql(operand)).collect();
                out.push_str(&format!("(ARRAY[{}]::", elements.join(", ")));
                self.type_name(out, *kind);
                out.push_str("[])");
            }
            Expression::CalledOnNull { signature, operands, .. } => self.signature(out, signature, operands),
            Expression::Extreme { greatest, operands, .. } => {
                self.call(out, if *greatest { "GREATEST" } else { "LEAST" }, operands);
            }
        }
    }

    fn around(&self, out: &mut String, before: &str, operand: &Expression, behind: &str) {
        out.push_str(before);
        self.print(out, operand);
        out.push_str(behind);
    }

    fn call(&self, out: &mut String, name: &str, operands: &[Expression]) {
        out.push_str(name);
        let mut before = "(";
        for operand in operands {
            out.push_str(before);
            self.print(out, operand);
            before = ", ";
        }
        out.push(')');
    }

    fn logical(&self, out: &mut String, operands: &[Expression], between: &str) {
        let mut parts: Vec<String> = Vec::new();
        let is_and = between == " AND ";
        let mut rest: Vec<&Expression> = operands.iter().rev().collect();
        while let Some(operand) = rest.pop() {
            match operand {
                Expression::And(below) if self.normal && is_and => rest.extend(below),
                Expression::Or(below) if self.normal && !is_and => rest.extend(below),
                other => parts.push(self.sql(other)),
            }
        }
        if self.normal {
            parts.sort_unstable();
            parts.dedup();
        }
        if let [part] = parts.as_slice() {
            out.push_str(part);
            return;
        }
        out.push('(');
        out.push_str(&parts.join(between));
        out.push(')');
    }

    fn slice(&self, out: &mut String, bounds: &[(bool, bool)], operands: &[Expression]) {
        self.around(out, "((", &operands[0], ")");
        let mut given = operands[1..].iter();
        let mut next = |is_given: bool| if is_given { given.next() } else { None };
        for &(lower, upper) in bounds {
            let [lower, upper] =
                [next(lower), next(upper)].map(|bound| bound.map_or_else(String::new, |bound| self.sql(bound)));
            out.push_str(&format!("[{lower} : {upper}]"));
        }
        out.push(')');
    }

    fn strict(&self, out: &mut String, function: &Function, operands: &[Expression]) {
        let operator = match function {
            Function::Cast { to, modifiers, .. } => {
                self.around(out, "(", &operands[0], ")::");
                self.type_name(out, *to);
                if !modifiers.is_empty() {
                    let modifiers: Vec<String> = modifiers.iter().map(ToString::to_string).collect();
                    out.push_str(&format!("({})", modifiers.join(",")));
                }
                return;
            }
            Function::Collate(collation) => {
                self.around(out, "(", &operands[0], " COLLATE ");
                out.push_str(collation);
                out.push(')');
                return;
            }
            Function::Negate(_) => return self.around(out, "(OPERATOR(pg_catalog.-) ", &operands[0], ")"),
            Function::Subscript => {
                self.around(out, "((", &operands[0], ")");
                operands[1..].iter().for_each(|subscript| self.around(out, "[", subscript, "]"));
                return out.push(')');
            }
            Function::Slice(bounds) => return self.slice(out, bounds, operands),
            Function::Call { signature, .. } => return self.signature(out, signature, operands),
            Function::LikeEscape => return self.call(out, "pg_catalog.like_escape", operands),
            Function::Compare { op, .. } => return self.compare(out, *op, operands),
            Function::Arithmetic { op, .. } => op.symbol(),
            Function::Regex { fold: false, .. } => "~",
            Function::Regex { fold: true, .. } => "~*",
            Function::Like { fold: false } => "~~",
            Function::Like { fold: true } => "~~*",
        };
        self.binary(out, &self.sql(&operands[0]), operator, &self.sql(&operands[1]));
    }

    fn signature(&self, out: &mut String, signature: &Signature, operands: &[Expression]) {
        match operands {
            [left, right] if signature.is_operator => {
                self.binary(out, &self.sql(left), signature.name, &self.sql(right));
            }
            [operand] if signature.is_operator => {
                out.push_str("(OPERATOR(pg_catalog.");
                out.push_str(signature.name);
                self.around(out, ") ", operand, ")");
            }
            operands => self.call(out, &format!("pg_catalog.\"{}\"", signature.name), operands),
        }
    }

    fn compare(&self, out: &mut String, op: Comparison, operands: &[Expression]) {
        let (left, right) = (self.sql(&operands[0]), self.sql(&operands[1]));
        let exchange = match op {
            Comparison::Equal | Comparison::NotEqual => right < left,
            Comparison::Less | Comparison::LessOrEqual => false,
            Comparison::Greater | Comparison::GreaterOrEqual => true,
        };
        if self.normal && exchange {
            self.binary(out, &right, op.exchanged().symbol(), &left);
        } else {
            self.binary(out, &left, op.symbol(), &right);
        }
    }

    fn binary(&self, out: &mut String, left: &str, operator: &str, right: &str) {
        out.push_str(&format!("({left} OPERATOR(pg_catalog.{operator}) {right})"));
    }

    fn quantified(&self, out: &mut String, quantified: &Quantified) {
        let Quantified { all, op, kind, left, values } = quantified;
        self.around(out, "(", left, " OPERATOR(pg_catalog.");
        out.push_str(op.symbol());
        out.push_str(if *all { ") ALL (ARRAY[" } else { ") ANY (ARRAY[" });
        let mut texts: Vec<String> = values.iter().map(|value| self.value(*kind, value)).collect();
        if self.normal {
            texts.sort_unstable();
            texts.dedup();
        }
        out.push_str(&texts.join(", "));
        out.push_str("]::");
        self.type_name(out, *kind);
        out.push_str("[]))");
    }

    fn constant(&self, out: &mut String, kind: Kind, value: &Value<'_>) {
        out.push('(');
        out.push_str(&self.value(kind, value));
        out.push_str("::");
        self.type_name(out, kind);
        out.push(')');
    }

    /// The value as a string in quotes, which the type's input function reads.
    fn value(&self, kind: Kind, value: &Value<'_>) -> String {
        let mut out = String::new();
        match self.text(kind, value) {
            Some(text) => quote_text(&mut out, &text),
            None => out.push_str("NULL"),
        }
        out
    }

    /// As the type's input function reads it; None of NULL.
    fn text(&self, kind: Kind, value: &Value<'_>) -> Option<String> {
        Some(match value {
            Value::Null => return None,
            Value::Bool(value) => value.to_string(),
            Value::Int(value) => self.int(kind, *value),
            Value::Numeric(value) => value.to_string(),
            Value::Float(value) => float(kind, *value),
            Value::Text(value) => value.clone().into_owned(),
            Value::Bytes(value) => {
                let hex: String = value.iter().map(|byte| format!("{byte:02x}")).collect();
                format!("\\x{hex}")
            }
            Value::Interval(value) => value.to_string(),
            Value::Json(value) => value.to_string(),
            Value::Range(range) => self.range(kind, range),
            Value::Array(array) => {
                let element = |element| match self.text(kind.innermost(), element) {
                    Some(text) => format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")),
                    None => "NULL".to_owned(),
                };
                format!("{{{}}}", array.elements.iter().map(element).collect::<Vec<_>>().join(","))
            }
        })
    }

    fn range(&self, kind: Kind, range: &Range) -> String {
        let Range::Bounded { lower, upper } = range else { return "empty".to_owned() };
        let (subtype, mut out) = (kind.subtype().unwrap_or(kind), String::new());
        let text = |bound: &Option<Bound>| {
            let value = bound.as_ref().and_then(|bound| self.text(subtype, &bound.value));
            value.map_or_else(String::new, |text| format!("\"{text}\""))
        };
        let inclusive = |bound: &Option<Bound>| bound.as_ref().is_some_and(|bound| bound.inclusive);
        out.push(if inclusive(lower) { '[' } else { '(' });
        out.push_str(&format!("{},{}", text(lower), text(upper)));
        out.push(if inclusive(upper) { ']' } else { ')' });
        out
    }

    fn int(&self, kind: Kind, value: i64) -> String {
        match kind {
            Kind::Date => moment::print_date(value),
            Kind::Time => moment::print_time(value),
            Kind::Timestamp => moment::print_timestamp(value, ""),
            Kind::Timestamptz => moment::print_timestamp(value, "+00"),
            Kind::Enum(column) => {
                let labels = self.table.enum_facts(column).map(|facts| &facts.labels);
                let label = usize::try_from(value).ok().and_then(|place| labels?.get(place));
                label.cloned().expect("a label's place came from the labels")
            }
            _ => value.to_string(),
        }
    }

    pub(super) fn type_name(&self, out: &mut String, kind: Kind) {
        let Kind::Enum(column) = kind else {
            out.push_str("pg_catalog.");
            out.push_str(kind.name());
            return;
        };
        if let Some(facts) = self.table.enum_facts(column) {
            quote_name(out, &facts.schema);
            out.push('.');
            quote_name(out, &facts.name);
        }
    }
}

/// The fewest digits that are read as the same float.
fn float(kind: Kind, value: f64) -> String {
    if value.is_infinite() {
        return if value > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    if kind == Kind::Float4 { format!("{:e}", value as f32) } else { format!("{value:e}") }
}

pub(super) fn quote_name(out: &mut String, name: &str) {
    out.push('"');
    out.push_str(&name.replace('"', "\"\""));
    out.push('"');
}

/// With backslashes, as `E''`, since what a backslash means in plain quotes is a setting.
fn quote_text(out: &mut String, text: &str) {
    out.push_str(if text.contains('\\') { "E'" } else { "'" });
    out.push_str(&text.replace('\\', "\\\\").replace('\'', "''"));
    out.push('\'');
}
