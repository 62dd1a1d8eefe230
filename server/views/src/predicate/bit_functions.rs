//! The bits of whole numbers (`int.c`, `int8.c` of `src/backend/utils/adt`).

use super::kind::Kind;
use super::signature::{Evaluated, Signature, Slot, operator};
use super::value::Value;

const INT2: Slot = Slot::Of(Kind::Int2);
const INT4: Slot = Slot::Of(Kind::Int4);
const INT8: Slot = Slot::Of(Kind::Int8);

pub(super) static SIGNATURES: &[Signature] = &[
    operator("&", &[INT2, INT2], INT2, |_, of| int(of[0].as_int() & of[1].as_int())),
    operator("&", &[INT4, INT4], INT4, |_, of| int(of[0].as_int() & of[1].as_int())),
    operator("&", &[INT8, INT8], INT8, |_, of| int(of[0].as_int() & of[1].as_int())),
    operator("|", &[INT2, INT2], INT2, |_, of| int(of[0].as_int() | of[1].as_int())),
    operator("|", &[INT4, INT4], INT4, |_, of| int(of[0].as_int() | of[1].as_int())),
    operator("|", &[INT8, INT8], INT8, |_, of| int(of[0].as_int() | of[1].as_int())),
    operator("#", &[INT2, INT2], INT2, |_, of| int(of[0].as_int() ^ of[1].as_int())),
    operator("#", &[INT4, INT4], INT4, |_, of| int(of[0].as_int() ^ of[1].as_int())),
    operator("#", &[INT8, INT8], INT8, |_, of| int(of[0].as_int() ^ of[1].as_int())),
    operator("~", &[INT2], INT2, |_, of| int(!of[0].as_int())),
    operator("~", &[INT4], INT4, |_, of| int(!of[0].as_int())),
    operator("~", &[INT8], INT8, |_, of| int(!of[0].as_int())),
    operator("<<", &[INT2, INT4], INT2, shift_left),
    operator("<<", &[INT4, INT4], INT4, shift_left),
    operator("<<", &[INT8, INT4], INT8, shift_left),
    operator(">>", &[INT2, INT4], INT2, shift_right),
    operator(">>", &[INT4, INT4], INT4, shift_right),
    operator(">>", &[INT8, INT4], INT8, shift_right),
];

fn int<'v>(value: i64) -> Evaluated<'v> {
    Ok(Value::Int(value))
}

/// As processors shift: by the lowest five or six bits of the distance; an int2 as an int4, of which the lower half stays.
fn shift_left<'v>(kind: Kind, of: &[Value<'v>]) -> Evaluated<'v> {
    let (value, distance) = (of[0].as_int(), of[1].as_int() as u32);
    int(match kind {
        Kind::Int2 => i64::from((value as i32).wrapping_shl(distance) as i16),
        Kind::Int4 => i64::from((value as i32).wrapping_shl(distance)),
        _ => value.wrapping_shl(distance),
    })
}

fn shift_right<'v>(kind: Kind, of: &[Value<'v>]) -> Evaluated<'v> {
    let (value, distance) = (of[0].as_int(), of[1].as_int() as u32);
    int(match kind {
        Kind::Int2 | Kind::Int4 => i64::from((value as i32).wrapping_shr(distance)),
        _ => value.wrapping_shr(distance),
    })
}
