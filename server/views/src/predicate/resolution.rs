//! Which types an operator's operands get: PostgreSQL's choice among its operators (manual, sections 10.2 and 10.5).
//!
//! None stands for a type that is not known yet: a string, NULL, or a parameter without a type.

use super::kind::Kind;
use super::syntax::Arithmetic;

/// The types that a comparison takes for operands of these.
pub(super) fn comparison(left: Option<Kind>, right: Option<Kind>) -> Option<(Kind, Kind)> {
    let both = |kind| Some((kind, kind));
    let (left, right) = match (left, right) {
        (None, None) => return both(Kind::Text),
        (Some(kind), None) | (None, Some(kind)) => (kind, kind),
        (Some(left), Some(right)) => (left, right),
    };
    match (left, right) {
        // json cannot be compared.
        (left, _) if left.innermost() == Kind::Json => None,
        // varchar has no operators of its own.
        (Kind::Varchar, Kind::Varchar) => both(Kind::Text),
        (left, right) if left == right => both(left),
        (left, right) if left.int_width().is_some() && right.int_width().is_some() => Some((left, right)),
        (left, right) if left.is_text() && right.is_text() => {
            both(if left == Kind::Text || right == Kind::Text { Kind::Text } else { Kind::Bpchar })
        }
        (Kind::Oid, other) | (other, Kind::Oid) if other.int_width().is_some() => both(Kind::Oid),
        (left, right) if left.is_number() && right.is_number() => match (left.is_float(), right.is_float()) {
            (true, true) => Some((left, right)),
            (true, false) => Some((left, Kind::Float8)),
            (false, true) => Some((Kind::Float8, right)),
            (false, false) => both(Kind::Numeric),
        },
        _ => None,
    }
}

/// The type that both operands are brought to, which the result has.
pub(super) fn arithmetic(op: Arithmetic, left: Option<Kind>, right: Option<Kind>) -> Option<Kind> {
    let (left, right) = match (left, right) {
        (None, None) => return None,
        (Some(kind), None) | (None, Some(kind)) => (kind, kind),
        (Some(left), Some(right)) => (left, right),
    };
    if !left.is_number() || !right.is_number() {
        return None;
    }
    match (left.int_width(), right.int_width()) {
        (Some(narrow), Some(wide)) => Some(if narrow < wide { right } else { left }),
        _ if left.is_float() || right.is_float() => {
            let kind = if left == right { left } else { Kind::Float8 };
            (op != Arithmetic::Remainder).then_some(kind)
        }
        _ => Some(Kind::Numeric),
    }
}

/// The type of what may be one of several (CASE, COALESCE, IN, ARRAY): `select_common_type`.
pub(super) fn common(kinds: impl IntoIterator<Item = Option<Kind>>) -> Result<Kind, (Kind, Kind)> {
    let mut chosen: Option<Kind> = None;
    for kind in kinds.into_iter().flatten() {
        let Some(so_far) = chosen else {
            chosen = Some(kind);
            continue;
        };
        if kind == so_far {
            continue;
        }
        if kind.category() != so_far.category() {
            return Err((so_far, kind));
        }
        let moves = so_far.casts_implicitly_to(kind) && !kind.casts_implicitly_to(so_far);
        if moves && !so_far.is_preferred() {
            chosen = Some(kind);
        }
    }
    Ok(chosen.unwrap_or(Kind::Text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_type_stays_unless_it_casts_one_way() {
        assert_eq!(common([Some(Kind::Float4), Some(Kind::Numeric)]), Ok(Kind::Float4));
        assert_eq!(common([Some(Kind::Numeric), Some(Kind::Float4)]), Ok(Kind::Float4));
        assert_eq!(common([Some(Kind::Int4), None, Some(Kind::Int8)]), Ok(Kind::Int8));
        assert_eq!(common([Some(Kind::Varchar), Some(Kind::Text)]), Ok(Kind::Varchar));
        assert_eq!(common([None, None]), Ok(Kind::Text));
        assert_eq!(common([Some(Kind::Int4), Some(Kind::Text)]), Err((Kind::Int4, Kind::Text)));
    }

    #[test]
    fn comparisons_choose_postgresql_s_operator() {
        assert_eq!(comparison(Some(Kind::Bpchar), Some(Kind::Varchar)), Some((Kind::Bpchar, Kind::Bpchar)));
        assert_eq!(comparison(Some(Kind::Bpchar), Some(Kind::Text)), Some((Kind::Text, Kind::Text)));
        assert_eq!(comparison(Some(Kind::Float4), Some(Kind::Numeric)), Some((Kind::Float4, Kind::Float8)));
        assert_eq!(comparison(Some(Kind::Int4), Some(Kind::Numeric)), Some((Kind::Numeric, Kind::Numeric)));
        assert_eq!(comparison(Some(Kind::Date), Some(Kind::Timestamptz)), None);
    }
}
