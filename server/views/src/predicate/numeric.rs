//! PostgreSQL's `numeric`, exactly: any number of digits, `NaN`, infinities, and the scale that a result is rounded to
//! (`src/backend/utils/adt/numeric.c`; the rules are those of PostgreSQL 14 and newer). Never a float on the way.

use std::cmp::Ordering;
use std::fmt;

use num_bigint::{BigInt, Sign};

use super::evaluate::EvaluationError;

/// A number with as many digits behind the point as PostgreSQL would print.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Numeric {
    NaN,
    Infinity { negative: bool },
    Finite { digits: BigInt, scale: u32 },
}

/// `NUMERIC_DSCALE_MAX`
const SCALE_MAX: u32 = 16_383;
/// Digits before the point: `NUMERIC_WEIGHT_MAX + 1` groups of four.
const WHOLE_DIGITS_MAX: i64 = 131_072;
/// What a division has at least (`NUMERIC_MIN_SIG_DIGITS`), and at most behind the point (`NUMERIC_MAX_DISPLAY_SCALE`).
const SIGNIFICANT_MIN: i64 = 16;
const DIVISION_SCALE_MAX: i64 = 1_000;
/// What `round` and `trunc` are asked for at most (`NUMERIC_MAX_RESULT_SCALE`).
const ROUNDING_SCALE_MAX: i64 = 2_000;

fn power_of_ten(exponent: u32) -> BigInt {
    BigInt::from(10).pow(exponent)
}

impl Numeric {
    /// Of its digits.
    pub(super) fn byte_count(&self) -> usize {
        match self {
            Numeric::NaN | Numeric::Infinity { .. } => 0,
            Numeric::Finite { digits, .. } => usize::try_from(digits.bits() / 8).unwrap_or(usize::MAX),
        }
    }

    pub(super) fn of_int(value: i64) -> Self {
        Numeric::Finite { digits: BigInt::from(value), scale: 0 }
    }

    /// The digits with a point before the last `scale` of them.
    pub(super) fn decimal(digits: i64, scale: u32) -> Self {
        Numeric::Finite { digits: BigInt::from(digits), scale }
    }

    /// Reads decimal digits with a point and an exponent, or `NaN` and the infinities as PostgreSQL writes them.
    pub(super) fn parse(text: &str) -> Option<Self> {
        match text {
            "NaN" => return Some(Numeric::NaN),
            "Infinity" => return Some(Numeric::Infinity { negative: false }),
            "-Infinity" => return Some(Numeric::Infinity { negative: true }),
            _ => {}
        }
        let (mantissa, exponent) = match text.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
            None => (text, 0),
        };
        if exponent.abs() > 1_000 {
            return None;
        }
        let unsigned = mantissa.strip_prefix(['-', '+']).unwrap_or(mantissa);
        let (whole, fraction) = unsigned.split_once('.').unwrap_or((unsigned, ""));
        let all_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if whole.len() + fraction.len() == 0 || !all_digits(whole) || !all_digits(fraction) {
            return None;
        }
        let mut digits = BigInt::parse_bytes(format!("{whole}{fraction}").as_bytes(), 10)?;
        if mantissa.starts_with('-') {
            digits = -digits;
        }
        let scale = i32::try_from(fraction.len()).ok()? - exponent;
        if scale < 0 {
            digits *= power_of_ten(scale.unsigned_abs());
        }
        let number = Numeric::Finite { digits, scale: u32::try_from(scale.max(0)).ok()? };
        number.checked().ok().filter(|_| scale <= SCALE_MAX.cast_signed())
    }

    fn sign(&self) -> Sign {
        match self {
            Numeric::NaN => Sign::NoSign,
            Numeric::Infinity { negative: true } => Sign::Minus,
            Numeric::Infinity { negative: false } => Sign::Plus,
            Numeric::Finite { digits, .. } => digits.sign(),
        }
    }

    /// NaN equals itself and is above all.
    pub(super) fn compare(&self, other: &Self) -> Ordering {
        let rank = |number: &Self| match number {
            Numeric::Infinity { negative: true } => 0,
            Numeric::Finite { .. } => 1,
            Numeric::Infinity { negative: false } => 2,
            Numeric::NaN => 3,
        };
        if let (Numeric::Finite { digits: a, scale: m }, Numeric::Finite { digits: b, scale: n }) = (self, other) {
            return match m.cmp(n) {
                Ordering::Equal => a.cmp(b),
                Ordering::Less => (a * power_of_ten(n - m)).cmp(b),
                Ordering::Greater => a.cmp(&(b * power_of_ten(m - n))),
            };
        }
        rank(self).cmp(&rank(other))
    }

    pub(super) fn negate(self) -> Self {
        match self {
            Numeric::NaN => Numeric::NaN,
            Numeric::Infinity { negative } => Numeric::Infinity { negative: !negative },
            Numeric::Finite { digits, scale } => Numeric::Finite { digits: -digits, scale },
        }
    }

    pub(super) fn add(&self, other: &Self) -> Result<Self, EvaluationError> {
        match (self, other) {
            (Numeric::NaN, _) | (_, Numeric::NaN) => Ok(Numeric::NaN),
            (Numeric::Infinity { negative: a }, Numeric::Infinity { negative: b }) if a != b => Ok(Numeric::NaN),
            (Numeric::Infinity { negative }, _) | (_, Numeric::Infinity { negative }) => {
                Ok(Numeric::Infinity { negative: *negative })
            }
            (Numeric::Finite { digits: a, scale: m }, Numeric::Finite { digits: b, scale: n }) => {
                let scale = *m.max(n);
                let digits = a * power_of_ten(scale - m) + b * power_of_ten(scale - n);
                Numeric::Finite { digits, scale }.checked()
            }
        }
    }

    pub(super) fn subtract(&self, other: &Self) -> Result<Self, EvaluationError> {
        self.add(&other.clone().negate())
    }

    pub(super) fn multiply(&self, other: &Self) -> Result<Self, EvaluationError> {
        match (self, other) {
            (Numeric::NaN, _) | (_, Numeric::NaN) => Ok(Numeric::NaN),
            (Numeric::Finite { digits: a, scale: m }, Numeric::Finite { digits: b, scale: n }) => {
                let product = Numeric::Finite { digits: a * b, scale: m + n };
                if m + n > SCALE_MAX { product.rounded(SCALE_MAX) } else { product }.checked()
            }
            (Numeric::Infinity { .. }, _) | (_, Numeric::Infinity { .. }) => match (self.sign(), other.sign()) {
                (Sign::NoSign, _) | (_, Sign::NoSign) => Ok(Numeric::NaN),
                (a, b) => Ok(Numeric::Infinity { negative: a != b }),
            },
        }
    }

    pub(super) fn divide(&self, other: &Self) -> Result<Self, EvaluationError> {
        match (self, other) {
            (Numeric::NaN, _) | (_, Numeric::NaN) => Ok(Numeric::NaN),
            (Numeric::Infinity { .. }, Numeric::Infinity { .. }) => Ok(Numeric::NaN),
            (Numeric::Infinity { negative }, Numeric::Finite { .. }) => match other.sign() {
                Sign::NoSign => Err(EvaluationError::DivisionByZero),
                sign => Ok(Numeric::Infinity { negative: *negative != (sign == Sign::Minus) }),
            },
            (Numeric::Finite { .. }, Numeric::Infinity { .. }) => Ok(Numeric::of_int(0)),
            (Numeric::Finite { digits: a, scale: m }, Numeric::Finite { digits: b, scale: n }) => {
                if b.sign() == Sign::NoSign {
                    return Err(EvaluationError::DivisionByZero);
                }
                let scale = division_scale((a, *m), (b, *n));
                // One more bit than digits decides the rounding: half goes away from zero.
                let (mut above, mut below) = (a.clone(), b.clone());
                let shift = i64::from(scale) + i64::from(*n) - i64::from(*m);
                let ten = power_of_ten(u32::try_from(shift.abs()).unwrap_or(u32::MAX));
                if shift >= 0 {
                    above *= ten
                } else {
                    below *= ten
                }
                Numeric::Finite { digits: rounded_quotient(&above, &below), scale }.checked()
            }
        }
    }

    /// The quotient without what stands behind its point (`div`).
    pub(super) fn whole_quotient(&self, other: &Self) -> Result<Self, EvaluationError> {
        match (self, other) {
            (Numeric::Finite { digits: a, scale: m }, Numeric::Finite { digits: b, scale: n })
                if b.sign() != Sign::NoSign =>
            {
                let scale = *m.max(n);
                let digits = (a * power_of_ten(scale - m)) / (b * power_of_ten(scale - n));
                Numeric::Finite { digits, scale: 0 }.checked()
            }
            // NaN, infinities and zero, as of any quotient, and zero for a number by an infinity.
            _ => Ok(self.divide(other)?.truncated_at(0)),
        }
    }

    pub(super) fn remainder(&self, other: &Self) -> Result<Self, EvaluationError> {
        match (self, other) {
            (Numeric::NaN, _) | (_, Numeric::NaN) => Ok(Numeric::NaN),
            (_, Numeric::Finite { digits, .. }) if digits.sign() == Sign::NoSign => {
                Err(EvaluationError::DivisionByZero)
            }
            (Numeric::Infinity { .. }, _) => Ok(Numeric::NaN),
            (Numeric::Finite { .. }, Numeric::Infinity { .. }) => Ok(self.clone()),
            (Numeric::Finite { digits: a, scale: m }, Numeric::Finite { digits: b, scale: n }) => {
                let scale = *m.max(n);
                // The remainder has the dividend's sign, as BigInt's has.
                let digits = (a * power_of_ten(scale - m)) % (b * power_of_ten(scale - n));
                Ok(Numeric::Finite { digits, scale })
            }
        }
    }

    /// With so many digits behind the point; half goes away from zero.
    pub(super) fn rounded(self, scale: u32) -> Self {
        match self {
            Numeric::Finite { digits, scale: old } if old > scale => {
                Numeric::Finite { digits: rounded_quotient(&digits, &power_of_ten(old - scale)), scale }
            }
            Numeric::Finite { digits, scale: old } => {
                Numeric::Finite { digits: digits * power_of_ten(scale - old), scale }
            }
            Numeric::NaN | Numeric::Infinity { .. } => self,
        }
    }

    /// With so many digits behind the point, or with as many zeros before it where that is below zero.
    pub(super) fn rounded_at(self, scale: i64) -> Self {
        let scale = scale.clamp(-ROUNDING_SCALE_MAX, ROUNDING_SCALE_MAX);
        match (u32::try_from(scale), self) {
            (Ok(scale), number) => number.rounded(scale),
            (Err(_), Numeric::Finite { digits, scale: old }) => {
                let zeros = u32::try_from(-scale).unwrap_or(0);
                let digits = rounded_quotient(&digits, &power_of_ten(old + zeros)) * power_of_ten(zeros);
                Numeric::Finite { digits, scale: 0 }
            }
            (Err(_), special) => special,
        }
    }

    /// The same towards zero.
    pub(super) fn truncated_at(&self, scale: i64) -> Self {
        let Numeric::Finite { digits, scale: old } = self else { return self.clone() };
        let scale = scale.clamp(-ROUNDING_SCALE_MAX, ROUNDING_SCALE_MAX);
        let cut = u32::try_from(i64::from(*old) - scale).unwrap_or(0);
        let whole = digits / power_of_ten(cut) * power_of_ten(cut);
        Numeric::Finite { digits: whole, scale: *old }.rounded(u32::try_from(scale).unwrap_or(0))
    }

    pub(super) fn abs(&self) -> Self {
        if self.sign() == Sign::Minus { self.clone().negate() } else { self.clone() }
    }

    /// -1, 0, 1, or NaN.
    pub(super) fn signum(&self) -> Self {
        match (self, self.sign()) {
            (Numeric::NaN, _) => Numeric::NaN,
            (_, Sign::Minus) => Numeric::of_int(-1),
            (_, Sign::NoSign) => Numeric::of_int(0),
            (_, Sign::Plus) => Numeric::of_int(1),
        }
    }

    pub(super) fn floor(&self) -> Self {
        match self.truncated_at(0) {
            Numeric::Finite { digits, scale }
                if self.compare(&Numeric::Finite { digits: digits.clone(), scale }).is_lt() =>
            {
                Numeric::Finite { digits: digits - 1, scale }
            }
            whole => whole,
        }
    }

    pub(super) fn ceil(&self) -> Self {
        self.clone().negate().floor().negate()
    }

    /// As `numeric(precision, scale)`.
    pub(super) fn fitted(self, precision: u32, scale: u32) -> Result<Self, EvaluationError> {
        match self.rounded(scale) {
            Numeric::NaN => Ok(Numeric::NaN),
            Numeric::Finite { digits, .. } if decimal_digits(&digits) > i64::from(precision) => {
                Err(EvaluationError::OutOfRange { type_name: "numeric" })
            }
            finite @ Numeric::Finite { .. } => Ok(finite),
            Numeric::Infinity { .. } => Err(EvaluationError::OutOfRange { type_name: "numeric" }),
        }
    }

    /// The nearest whole number; None where it is not within an i64.
    pub(super) fn to_int(&self) -> Option<i64> {
        match self.clone().rounded(0) {
            Numeric::Finite { digits, .. } => i64::try_from(digits).ok(),
            Numeric::NaN | Numeric::Infinity { .. } => None,
        }
    }

    /// PostgreSQL's limit of what a numeric can hold.
    fn checked(self) -> Result<Self, EvaluationError> {
        match &self {
            Numeric::Finite { digits, scale } if decimal_digits(digits) - i64::from(*scale) > WHOLE_DIGITS_MAX => {
                Err(EvaluationError::OutOfRange { type_name: "numeric" })
            }
            Numeric::NaN | Numeric::Infinity { .. } | Numeric::Finite { .. } => Ok(self),
        }
    }
}

impl fmt::Display for Numeric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Numeric::NaN => f.write_str("NaN"),
            Numeric::Infinity { negative } => f.write_str(if *negative { "-Infinity" } else { "Infinity" }),
            Numeric::Finite { digits, scale } => {
                let scale = *scale as usize;
                let text = format!("{:0>width$}", digits.magnitude().to_string(), width = scale + 1);
                let (whole, fraction) = text.split_at(text.len() - scale);
                let sign = if digits.sign() == Sign::Minus { "-" } else { "" };
                let point = if scale > 0 { "." } else { "" };
                write!(f, "{sign}{whole}{point}{fraction}")
            }
        }
    }
}

/// Of a number that is not zero; 0 for zero.
fn decimal_digits(number: &BigInt) -> i64 {
    if number.sign() == Sign::NoSign { 0 } else { number.magnitude().to_string().len() as i64 }
}

/// Half goes away from zero.
fn rounded_quotient(above: &BigInt, below: &BigInt) -> BigInt {
    let (quotient, remainder) = (above / below, above % below);
    if remainder.magnitude() * 2_u32 < *below.magnitude() {
        return quotient;
    }
    match above.sign() == below.sign() {
        true => quotient + 1,
        false => quotient - 1,
    }
}

/// `select_div_scale`: enough for 16 significant digits, counted in groups of four.
fn division_scale(above: (&BigInt, u32), below: (&BigInt, u32)) -> u32 {
    let (above_weight, above_first) = first_group(above.0, above.1);
    let (below_weight, below_first) = first_group(below.0, below.1);
    let weight = above_weight - below_weight - i64::from(above_first <= below_first);
    let scale = (SIGNIFICANT_MIN - weight * 4).max(above.1.into()).max(below.1.into()).clamp(0, DIVISION_SCALE_MAX);
    u32::try_from(scale).unwrap_or(0)
}

/// The first group of four digits that is not zero, counted from the point, and its value.
fn first_group(digits: &BigInt, scale: u32) -> (i64, u32) {
    if digits.sign() == Sign::NoSign {
        return (0, 0);
    }
    let text = digits.magnitude().to_string();
    let exponent = text.len() as i64 - 1 - i64::from(scale);
    let (weight, len) = (exponent.div_euclid(4), exponent.rem_euclid(4) as usize + 1);
    let first = text.bytes().chain(std::iter::repeat(b'0')).take(len);
    (weight, first.fold(0, |value, digit| value * 10 + u32::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Numeric {
        Numeric::parse(text).expect("a number")
    }

    #[test]
    fn numbers_are_printed_as_they_were_written() {
        for text in ["0", "-0.00", "1.50", "-12.003", "NaN", "Infinity", "-Infinity"] {
            assert_eq!(of(text).to_string(), text.replace("-0.00", "0.00"));
        }
        assert_eq!(of("1.5e3").to_string(), "1500");
        assert_eq!(of("1.5e-3").to_string(), "0.0015");
    }

    #[test]
    fn numbers_are_rounded_towards_where_they_should_be() {
        for (text, scale, rounded, truncated) in [
            ("1.25", 1, "1.3", "1.2"),
            ("-1.25", 1, "-1.3", "-1.2"),
            ("1250", -2, "1300", "1200"),
            ("1", 2, "1.00", "1.00"),
        ] {
            assert_eq!(of(text).rounded_at(scale).to_string(), rounded);
            assert_eq!(of(text).truncated_at(scale).to_string(), truncated);
        }
        assert_eq!((of("-1.5").floor(), of("-1.5").ceil()), (of("-2"), of("-1")));
        assert_eq!((of("1.0").floor(), of("1.5").ceil()), (of("1"), of("2")));
    }

    #[test]
    fn quotients_have_postgresql_s_scale() {
        for (above, below, quotient) in [
            ("1", "3", "0.33333333333333333333"),
            ("2", "1", "2.0000000000000000"),
            ("10", "4", "2.5000000000000000"),
            ("-7", "2.00", "-3.5000000000000000"),
            ("100000000", "3", "33333333.333333333333"),
        ] {
            assert_eq!(of(above).divide(&of(below)).expect("a quotient").to_string(), quotient);
        }
    }
}
