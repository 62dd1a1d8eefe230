//! Functions and operators by what they take and give, and PostgreSQL's choice among those of one name (manual, sections 10.2
//! and 10.3; `func_select_candidate` in `src/backend/parser/parse_func.c`).
//!
//! The tables hold what is evaluated, and beside it what PostgreSQL might choose instead, which is refused. All are immutable, and
//! strict where it is not said otherwise.

use super::evaluate::EvaluationError;
use super::kind::{Category, Kind};
use super::resolution;
use super::value::Value;
use super::{
    array_functions, bit_functions, json_functions, moment_comparisons, moment_functions, number_functions,
    range_functions, text_functions,
};

pub(super) type Evaluated<'v> = Result<Value<'v>, EvaluationError>;

/// Of operands with the types that the signature asks for, none of them NULL where it is strict; the type is the result's.
type Run = for<'v> fn(Kind, &[Value<'v>]) -> Evaluated<'v>;

/// A function or an operator.
#[derive(Debug)]
pub(super) struct Signature {
    pub(super) name: &'static str,
    pub(super) is_operator: bool,
    pub(super) operands: &'static [Slot],
    pub(super) result: Slot,
    /// Is it NULL where an operand is, and not called for that? (`pg_proc.proisstrict`)
    pub(super) is_strict: bool,
    pub(super) needs: Needs,
    pub(super) does: Does,
}

/// What an operand may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slot {
    Of(Kind),
    /// All of these in a signature are of one type.
    AnyArray,
    AnyRange,
    /// The type of the elements of `AnyArray`, or what `AnyRange` is of.
    AnyElement,
    /// `anycompatible`: all of these, and the elements of all `CompatibleArray`, are brought to one type.
    Compatible,
    CompatibleArray,
    /// `anynonarray`, which PostgreSQL casts to text.
    NonArrayAsText,
}

/// What its result depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Needs {
    Nothing,
    /// Only equal bytes are equal.
    Deterministic,
    /// The same, and what it compares has an operator `=` that sees all of it.
    Equality,
    /// Letters have the case that ASCII gives them.
    Bytes,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Does {
    Run(Run),
    /// With what to write instead.
    Refused(&'static str),
}

pub(super) const fn function(name: &'static str, operands: &'static [Slot], result: Slot, run: Run) -> Signature {
    let (needs, does) = (Needs::Nothing, Does::Run(run));
    Signature { name, is_operator: false, operands, result, is_strict: true, needs, does }
}

pub(super) const fn operator(name: &'static str, operands: &'static [Slot], result: Slot, run: Run) -> Signature {
    Signature { is_operator: true, ..function(name, operands, result, run) }
}

impl Signature {
    pub(super) const fn called_on_null(self) -> Self {
        Signature { is_strict: false, ..self }
    }

    pub(super) const fn needing(self, needs: Needs) -> Self {
        Signature { needs, ..self }
    }

    pub(super) const fn refused(self, instead: &'static str) -> Self {
        Signature { does: Does::Refused(instead), ..self }
    }
}

/// The tables of this file's neighbours.
fn all() -> impl Iterator<Item = &'static Signature> {
    let tables = [
        text_functions::SIGNATURES,
        number_functions::SIGNATURES,
        bit_functions::SIGNATURES,
        array_functions::SIGNATURES,
        range_functions::SIGNATURES,
        json_functions::SIGNATURES,
        moment_functions::SIGNATURES,
        moment_comparisons::SIGNATURES,
    ];
    tables.into_iter().flatten()
}

/// Those of a name, an operator's being its symbol.
pub(super) fn named(name: &str, is_operator: bool) -> Vec<&'static Signature> {
    all().filter(|signature| signature.name == name && signature.is_operator == is_operator).collect()
}

/// A signature, and the types that the operands are brought to and that the result has.
pub(super) struct Chosen {
    pub(super) signature: &'static Signature,
    pub(super) operands: Vec<Kind>,
    pub(super) result: Kind,
}

/// PostgreSQL's choice; None where it finds none or more than one. An operand without a type is unknown.
pub(super) fn choose(candidates: &[&'static Signature], given: &[Option<Kind>]) -> Option<Chosen> {
    let mut left: Vec<&'static Signature> = candidates
        .iter()
        .copied()
        .filter(|signature| signature.operands.len() == given.len())
        .filter(|signature| takes(signature, given))
        .collect();
    // An operator with one operand of a known type is looked for with that type for both first.
    if let ([Some(kind), None] | [None, Some(kind)], true) = (given, candidates.iter().any(|found| found.is_operator)) {
        let both = [Slot::Of(*kind); 2];
        let array = match kind {
            Kind::Array(_) => Some([Slot::AnyArray; 2]),
            Kind::Range(_) => Some([Slot::AnyRange; 2]),
            _ => None,
        };
        if let Some(found) =
            left.iter().find(|found| found.operands == both || array.is_some_and(|array| found.operands == array))
        {
            left = vec![found];
        }
    }
    keep_best(&mut left, |signature| matches(signature, given, |slot, kind| slot.is(kind)));
    keep_best(&mut left, |signature| {
        matches(signature, given, |slot, kind| {
            slot.is(kind) || slot.kind().is_some_and(|slot| slot.is_preferred() && slot.category() == kind.category())
        })
    });
    if left.len() > 1 {
        left = by_unknown(left, given);
    }
    let [signature] = left.as_slice() else { return None };
    chosen(signature, given)
}

fn matches(signature: &Signature, given: &[Option<Kind>], fits: impl Fn(Slot, Kind) -> bool) -> usize {
    let pairs = signature.operands.iter().zip(given);
    pairs.filter(|&(&slot, kind)| kind.is_some_and(|kind| fits(slot, kind))).count()
}

fn keep_best(left: &mut Vec<&'static Signature>, score: impl Fn(&Signature) -> usize) {
    let best = left.iter().map(|signature| score(signature)).max().unwrap_or(0);
    left.retain(|signature| score(signature) == best);
}

/// Unknown operands are taken as text where a candidate does, else as what all candidates take; and at last as the other
/// operands, where those are of one type.
fn by_unknown(left: Vec<&'static Signature>, given: &[Option<Kind>]) -> Vec<&'static Signature> {
    let unknown: Vec<usize> = (0..given.len()).filter(|&at| given[at].is_none()).collect();
    let mut narrowed = left.clone();
    // PostgreSQL has candidates for types that are not known here: where nothing is known of the operands, only text wins.
    let nothing_known = unknown.len() == given.len();
    let mut resolved = !unknown.is_empty();
    for &at in &unknown {
        let categories: Vec<_> = left.iter().map(|signature| signature.operands[at].category()).collect();
        let category = match categories.iter().find(|&&category| category == Category::Text) {
            Some(text) => *text,
            None => categories[0],
        };
        resolved &= category == Category::Text || !nothing_known && categories.iter().all(|&other| other == category);
        let preferred = |signature: &Signature| signature.operands[at].kind().is_some_and(Kind::is_preferred);
        let in_category = |signature: &&Signature| signature.operands[at].category() == category;
        let any_preferred = left.iter().copied().filter(in_category).any(preferred);
        narrowed.retain(|signature| in_category(signature) && (!any_preferred || preferred(signature)));
    }
    if resolved && !narrowed.is_empty() {
        if narrowed.len() == 1 {
            return narrowed;
        }
    } else {
        narrowed = left;
    }
    let known: Vec<Kind> = given.iter().flatten().copied().collect();
    let Some(&first) = known.first().filter(|first| !unknown.is_empty() && known.iter().all(|kind| kind == *first))
    else {
        return narrowed;
    };
    let all_known = vec![Some(first); given.len()];
    narrowed.into_iter().filter(|signature| takes(signature, &all_known)).collect()
}

/// Can operands of these types be brought to those that it takes?
fn takes(signature: &Signature, given: &[Option<Kind>]) -> bool {
    let mut pairs = signature.operands.iter().zip(given);
    pairs.all(|(&slot, kind)| kind.is_none_or(|kind| slot.takes(kind))) && agrees(signature, given)
}

/// By what the types of operands that may be of several are known.
struct Leading {
    /// The array or range of the signature.
    polymorphic: Option<Kind>,
    /// The type that `Compatible` operands are brought to.
    common: Kind,
}

/// None where operands that are brought to one type have none in common.
fn leading(signature: &Signature, given: &[Option<Kind>]) -> Option<Leading> {
    let pairs = || signature.operands.iter().copied().zip(given.iter().copied());
    let leads = |(slot, kind)| if matches!(slot, Slot::AnyArray | Slot::AnyRange) { kind } else { None };
    let compatible = |(slot, kind): (Slot, Option<Kind>)| match slot {
        Slot::Compatible => kind,
        Slot::CompatibleArray => kind.and_then(Kind::element),
        _other => None,
    };
    let common = resolution::common(pairs().map(compatible)).ok()?;
    let becomes = |kind: Kind| kind == common || kind.casts_implicitly_to(common);
    pairs().filter_map(compatible).all(becomes).then(|| Leading { polymorphic: pairs().find_map(leads), common })
}

/// The slot's type, where it is known.
fn concrete(slot: Slot, leading: &Leading) -> Option<Kind> {
    let polymorphic = leading.polymorphic;
    match slot {
        Slot::Of(kind) => Some(kind),
        Slot::AnyArray | Slot::AnyRange => polymorphic,
        Slot::AnyElement => polymorphic.and_then(|leading| leading.element().or(leading.subtype())),
        Slot::Compatible => Some(leading.common),
        Slot::CompatibleArray => leading.common.array(),
        Slot::NonArrayAsText => Some(Kind::Text),
    }
}

/// Arrays, ranges and what they are of are not brought to one type, unless they are `Compatible`.
fn agrees(signature: &Signature, given: &[Option<Kind>]) -> bool {
    let Some(leading) = leading(signature, given) else { return false };
    signature.operands.iter().zip(given).all(|(&slot, given)| match (slot, given) {
        (Slot::AnyArray | Slot::AnyRange | Slot::AnyElement, Some(given)) => {
            concrete(slot, &leading).is_none_or(|kind| *given == kind)
        }
        (Slot::AnyArray | Slot::AnyRange | Slot::AnyElement, None)
        | (Slot::Of(_) | Slot::Compatible | Slot::CompatibleArray | Slot::NonArrayAsText, _) => true,
    })
}

fn chosen(signature: &'static Signature, given: &[Option<Kind>]) -> Option<Chosen> {
    let leading = leading(signature, given)?;
    let operands = signature.operands.iter().map(|&slot| concrete(slot, &leading)).collect::<Option<Vec<_>>>()?;
    Some(Chosen { signature, result: concrete(signature.result, &leading)?, operands })
}

impl Slot {
    fn kind(self) -> Option<Kind> {
        if let Slot::Of(kind) = self { Some(kind) } else { None }
    }

    fn is(self, kind: Kind) -> bool {
        self == Slot::Of(kind)
    }

    fn takes(self, kind: Kind) -> bool {
        match self {
            Slot::Of(slot) => kind.casts_implicitly_to(slot),
            // JSON has no order, by which elements are found; the padding of `character` does not count in it.
            Slot::AnyArray => {
                kind.element().is_some_and(|element| !matches!(element, Kind::Json | Kind::Jsonb | Kind::Bpchar))
            }
            Slot::AnyRange => kind.subtype().is_some(),
            Slot::AnyElement | Slot::Compatible => true,
            Slot::CompatibleArray => kind.element().is_some(),
            Slot::NonArrayAsText => kind.element().is_none(),
        }
    }

    fn category(self) -> Category {
        match self {
            Slot::Of(kind) => kind.category(),
            Slot::AnyArray
            | Slot::AnyRange
            | Slot::AnyElement
            | Slot::Compatible
            | Slot::CompatibleArray
            | Slot::NonArrayAsText => Category::Pseudo,
        }
    }
}
