//! PostgreSQL's array text (manual, section 8.15.6; `array_out`), and its `tidegate.v1.*Array`.
//!
//! `{1,NULL,3}`, `{{"a b","c\"d"},{e,"NULL"}}`, `[0:1]={x,y}`: elements in row-major order, quoted where they hold
//! anything special. The text is read in place, once for the values and once more where there are NULLs; only an
//! element with escapes is copied.
//!
//! Invariant: nothing but a rectangular array of at most six dimensions is accepted.

use std::fmt::Write;

use bytes::BytesMut;

use crate::ScalarKind;
use crate::scalar::{number_wire_type, print_scalar, put_number, put_scalar};
use crate::wire::{self, Field, Fields, Piece, WireType};

/// PostgreSQL's `MAXDIM`.
const DIMENSIONS_MAX: usize = 6;

/// The field numbers of the array messages and of `tidegate.v1.ArrayLayout`.
const VALUES: u32 = 1;
const NULLS: u32 = 2;
const LAYOUT: u32 = 3;
const LAYOUT_DIMENSIONS: u32 = 1;
const LAYOUT_LOWER_BOUNDS: u32 = 2;

/// Appends a field that holds the array; None where the text is none, or an element is malformed.
pub(crate) fn put_array(out: &mut BytesMut, field: u32, element: ScalarKind, delimiter: u8, text: &[u8]) -> Option<()> {
    let open = wire::begin_len_field(out, field);
    let (shape, null_count) = match number_wire_type(element) {
        Some(_) => put_numbers(out, element, delimiter, text)?,
        None => put_elements(out, element, delimiter, text)?,
    };
    if null_count > 0 {
        let packed = wire::begin_len_field(out, NULLS);
        let mut index = 0;
        read(text, delimiter, |element| {
            if matches!(element, Element::Null) {
                wire::put_varint(out, index);
            }
            index += 1;
            Some(())
        })?;
        wire::end_len_field(out, packed);
    }
    shape.put_layout(out);
    wire::end_len_field(out, open);
    Some(())
}

/// Appends the values as one packed field. Returns the shape and the number of NULLs.
fn put_numbers(out: &mut BytesMut, kind: ScalarKind, delimiter: u8, text: &[u8]) -> Option<(Shape, u32)> {
    let start = out.len();
    let packed = wire::begin_len_field(out, VALUES);
    let mut null_count = 0;
    let shape = read(text, delimiter, |element| {
        let mut piece = Piece::<{ wire::MAX_VARINT_BYTES }>::new();
        match element {
            Element::Null => {
                null_count += 1;
                put_number(&mut piece, kind, if kind == ScalarKind::Bool { b"f" } else { b"0" })?;
            }
            Element::Plain(text) => put_number(&mut piece, kind, text)?,
            Element::Escaped(_) => return None,
        }
        out.extend_from_slice(piece.as_slice());
        Some(())
    })?;
    if shape.dimension_count == 0 {
        out.truncate(start);
    } else {
        wire::end_len_field(out, packed);
    }
    Some((shape, null_count))
}

/// Appends the values one by one. Returns the shape and the number of NULLs.
fn put_elements(out: &mut BytesMut, kind: ScalarKind, delimiter: u8, text: &[u8]) -> Option<(Shape, u32)> {
    let mut null_count = 0;
    let shape = read(text, delimiter, |element| {
        match element {
            Element::Null => {
                null_count += 1;
                wire::put_len_field(out, VALUES, b"");
            }
            Element::Plain(text) => put_scalar(out, VALUES, kind, text)?,
            Element::Escaped(text) => put_scalar(out, VALUES, kind, &unescaped(text))?,
        }
        Some(())
    })?;
    Some((shape, null_count))
}

/// An element as it stands in the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Element<'a> {
    Null,
    /// The value.
    Plain(&'a [u8]),
    /// The value with backslashes before some of its bytes.
    Escaped(&'a [u8]),
}

/// Removes the backslashes. The text has been read, so that none stands last.
fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.iter();
    while let Some(&byte) = bytes.next() {
        out.push(if byte == b'\\' { *bytes.next().unwrap_or(&byte) } else { byte });
    }
    out
}

/// How an array is laid out; no dimensions where it is empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Shape {
    dimension_count: usize,
    lengths: [u32; DIMENSIONS_MAX],
    lower_bounds: [i32; DIMENSIONS_MAX],
}

impl Shape {
    /// Appends the `ArrayLayout`, unless it is the usual one.
    fn put_layout(&self, out: &mut BytesMut) {
        let lower_bounds = &self.lower_bounds[..self.dimension_count];
        let shifted = lower_bounds.iter().any(|&bound| bound != 1);
        if self.dimension_count < 2 && !shifted {
            return;
        }
        let layout = wire::begin_len_field(out, LAYOUT);
        let packed = wire::begin_len_field(out, LAYOUT_DIMENSIONS);
        for &length in &self.lengths[..self.dimension_count] {
            wire::put_varint(out, u64::from(length));
        }
        wire::end_len_field(out, packed);
        if shifted {
            let packed = wire::begin_len_field(out, LAYOUT_LOWER_BOUNDS);
            for &bound in lower_bounds {
                let zigzag = (bound << 1) ^ (bound >> 31);
                wire::put_varint(out, u64::from(zigzag.cast_unsigned()));
            }
            wire::end_len_field(out, packed);
        }
        wire::end_len_field(out, layout);
    }

    /// The shape of so many elements, at least one, from their encoded `ArrayLayout`; None where that is none of theirs.
    fn of_layout(layout: Option<&[u8]>, count: usize) -> Option<Self> {
        let mut shape = Shape { lower_bounds: [1; DIMENSIONS_MAX], ..Shape::default() };
        let Some(layout) = layout else {
            shape.dimension_count = 1;
            shape.lengths[0] = u32::try_from(count).ok()?;
            return Some(shape);
        };
        let mut bound_count = 0;
        for field in Fields::new(layout) {
            let field = field.ok()?;
            for value in unpacked(field.value, WireType::Varint) {
                let value = u32::try_from(wire::read_varint(value?.value).ok()?.0).ok()?;
                match (field.number, field.wire_type) {
                    (LAYOUT_DIMENSIONS, WireType::Len) => {
                        *shape.lengths.get_mut(shape.dimension_count)? = value;
                        shape.dimension_count += 1;
                    }
                    (LAYOUT_LOWER_BOUNDS, WireType::Len) => {
                        let zigzag = (value >> 1).cast_signed() ^ -(value & 1).cast_signed();
                        *shape.lower_bounds.get_mut(bound_count)? = zigzag;
                        bound_count += 1;
                    }
                    _ => return None,
                }
            }
        }
        let lengths = &shape.lengths[..shape.dimension_count];
        let product = lengths.iter().try_fold(1_usize, |product, &length| product.checked_mul(length as usize));
        let agrees = shape.dimension_count > 0 && product == Some(count);
        (agrees && (bound_count == 0 || bound_count == shape.dimension_count)).then_some(shape)
    }

    /// Appends the subscripts, where they do not start at 1.
    fn print_bounds(&self, out: &mut String) -> Option<()> {
        let lower_bounds = &self.lower_bounds[..self.dimension_count];
        if lower_bounds.iter().all(|&bound| bound == 1) {
            return Some(());
        }
        for (&lower, &length) in lower_bounds.iter().zip(&self.lengths) {
            let upper = i32::try_from(i64::from(lower) + i64::from(length) - 1).ok()?;
            write!(out, "[{lower}:{upper}]").ok()?;
        }
        out.push('=');
        Some(())
    }
}

/// Hands out each element in row-major order; None where the text is not an array or `each` says so.
fn read<'a>(text: &'a [u8], delimiter: u8, mut each: impl FnMut(Element<'a>) -> Option<()>) -> Option<Shape> {
    if text == b"{}" {
        return Some(Shape::default());
    }
    let (bounds, mut rest) = Bounds::read(text)?;
    let mut shape = Shape { lower_bounds: [1; DIMENSIONS_MAX], ..Shape::default() };
    // Items so far in each open brace.
    let mut counts = [0_u32; DIMENSIONS_MAX];
    let mut depth = 0;
    loop {
        while let Some(inner) = rest.strip_prefix(b"{") {
            if depth == DIMENSIONS_MAX {
                return None;
            }
            counts[depth] = 0;
            depth += 1;
            rest = inner;
        }
        if shape.dimension_count == 0 {
            shape.dimension_count = depth;
        }
        // Elements stand at the innermost level only; depth 0 is text without braces.
        if depth == 0 || depth != shape.dimension_count {
            return None;
        }
        let (element, after) = read_element(rest, delimiter)?;
        each(element)?;
        counts[depth - 1] += 1;
        rest = after;
        while let Some(outer) = rest.strip_prefix(b"}") {
            depth -= 1;
            let length = &mut shape.lengths[depth];
            if *length != 0 && *length != counts[depth] {
                return None;
            }
            *length = counts[depth];
            rest = outer;
            if depth == 0 {
                return if rest.is_empty() { bounds.apply(shape) } else { None };
            }
            counts[depth - 1] += 1;
        }
        rest = rest.strip_prefix(&[delimiter])?;
    }
}

fn read_element(text: &[u8], delimiter: u8) -> Option<(Element<'_>, &[u8])> {
    let Some(quoted) = text.strip_prefix(b"\"") else {
        let end = text.iter().position(|&byte| byte == delimiter || matches!(byte, b'{' | b'}' | b'"' | b'\\'))?;
        let (element, rest) = text.split_at(end);
        if element.is_empty() {
            return None;
        }
        let null = element.eq_ignore_ascii_case(b"NULL");
        return Some((if null { Element::Null } else { Element::Plain(element) }, rest));
    };
    let mut escaped = false;
    let mut at = 0;
    loop {
        at += quoted[at..].iter().position(|byte| matches!(byte, b'"' | b'\\'))?;
        if quoted[at] == b'"' {
            let element = &quoted[..at];
            let element = if escaped { Element::Escaped(element) } else { Element::Plain(element) };
            return Some((element, &quoted[at + 1..]));
        }
        escaped = true;
        at += 2;
        if at > quoted.len() {
            return None;
        }
    }
}

/// The subscripts that stand before the braces where they do not start at 1: `[2:3][0:1]=`.
#[derive(Debug, Default)]
struct Bounds {
    count: usize,
    lower: [i32; DIMENSIONS_MAX],
    upper: [i32; DIMENSIONS_MAX],
}

impl Bounds {
    fn read(text: &[u8]) -> Option<(Self, &[u8])> {
        let mut bounds = Bounds::default();
        let mut rest = text;
        while let Some(inner) = rest.strip_prefix(b"[") {
            if bounds.count == DIMENSIONS_MAX {
                return None;
            }
            let end = inner.iter().position(|&byte| byte == b']')?;
            let (lower, upper) = str::from_utf8(&inner[..end]).ok()?.split_once(':')?;
            bounds.lower[bounds.count] = lower.parse().ok()?;
            bounds.upper[bounds.count] = upper.parse().ok()?;
            bounds.count += 1;
            rest = &inner[end + 1..];
        }
        if bounds.count > 0 {
            rest = rest.strip_prefix(b"=")?;
        }
        Some((bounds, rest))
    }

    /// The shape with these lower bounds, if its lengths agree.
    fn apply(&self, mut shape: Shape) -> Option<Shape> {
        if self.count == 0 {
            return Some(shape);
        }
        let length = |at: usize| i64::from(self.upper[at]) - i64::from(self.lower[at]) + 1;
        let agrees =
            self.count == shape.dimension_count && (0..self.count).all(|at| length(at) == i64::from(shape.lengths[at]));
        shape.lower_bounds = self.lower;
        agrees.then_some(shape)
    }
}

/// The fields of an encoded array.
struct Parts<'a> {
    message: &'a [u8],
    /// Of numbers, which are packed.
    number: Option<WireType>,
    packed: &'a [u8],
    nulls: &'a [u8],
    layout: Option<&'a [u8]>,
    count: usize,
}

impl<'a> Parts<'a> {
    fn read(element: ScalarKind, message: &'a [u8]) -> Option<Self> {
        let number = number_wire_type(element);
        let mut parts = Parts { message, number, packed: b"", nulls: b"", layout: None, count: 0 };
        for field in Fields::new(message) {
            let field = field.ok()?;
            match (field.number, field.wire_type) {
                (VALUES, WireType::Len) if number.is_none() => parts.count += 1,
                (VALUES, WireType::Len) if parts.packed.is_empty() => parts.packed = field.value,
                (NULLS, WireType::Len) if parts.nulls.is_empty() => parts.nulls = field.value,
                (LAYOUT, WireType::Len) if parts.layout.is_none() => parts.layout = Some(field.value),
                _ => return None,
            }
        }
        if let Some(wire_type) = number {
            parts.count = unpacked(parts.packed, wire_type).try_fold(0, |count, field| field.map(|_| count + 1))?;
        }
        Some(parts)
    }

    /// Whether it is the empty array, of which nothing is encoded.
    fn is_empty(&self) -> Option<bool> {
        let empty = self.count == 0;
        (!empty || self.nulls.is_empty() && self.layout.is_none()).then_some(empty)
    }

    /// Hands out each element in row-major order.
    fn try_for_each(&self, mut each: impl FnMut(Field<'a>) -> Option<()>) -> Option<()> {
        match self.number {
            Some(wire_type) => unpacked(self.packed, wire_type).try_for_each(|field| each(field?)),
            None => {
                let mut values =
                    Fields::new(self.message).filter_map(Result::ok).filter(|field| field.number == VALUES);
                values.try_for_each(each)
            }
        }
    }
}

/// The indexes of the elements that are NULL, which come in order.
struct Nulls<'a>(&'a [u8]);

impl Nulls<'_> {
    /// Is the element with this index NULL? Asked of each in order.
    fn take(&mut self, index: usize) -> bool {
        let found = wire::read_varint(self.0).ok().filter(|&(null, _)| null == index as u64);
        self.0 = found.map_or(self.0, |(_, len)| &self.0[len..]);
        found.is_some()
    }
}

/// An encoded array, taken apart.
#[derive(Debug)]
pub struct EncodedArray<'a> {
    /// The elements in row-major order; None is NULL.
    pub elements: Vec<Option<Field<'a>>>,
    /// The first subscript and the length of each dimension; none where the array is empty.
    pub dimensions: Vec<(i32, u32)>,
}

impl<'a> EncodedArray<'a> {
    /// Of a `tidegate.v1.*Array`; None where the bytes are none.
    #[must_use]
    pub fn read(element: ScalarKind, message: &'a [u8]) -> Option<Self> {
        let parts = Parts::read(element, message)?;
        let mut elements = Vec::with_capacity(parts.count);
        if parts.is_empty()? {
            return Some(EncodedArray { elements, dimensions: Vec::new() });
        }
        let shape = Shape::of_layout(parts.layout, parts.count)?;
        let mut nulls = Nulls(parts.nulls);
        parts.try_for_each(|field| {
            let null = nulls.take(elements.len());
            elements.push((!null).then_some(field));
            Some(())
        })?;
        let dimensions = shape.lower_bounds.iter().copied().zip(shape.lengths).take(shape.dimension_count).collect();
        nulls.0.is_empty().then_some(EncodedArray { elements, dimensions })
    }
}

/// Appends the text of an encoded array; None where it is none, or an element is malformed.
pub(crate) fn print_array(out: &mut String, element: ScalarKind, delimiter: u8, message: &[u8]) -> Option<()> {
    let parts = Parts::read(element, message)?;
    if parts.is_empty()? {
        out.push_str("{}");
        return Some(());
    }
    let shape = Shape::of_layout(parts.layout, parts.count)?;
    shape.print_bounds(out)?;
    let nulls = Nulls(parts.nulls);
    let mut printer = Printer { out, element, delimiter, shape, nulls, index: 0, scratch: String::new() };
    parts.try_for_each(|field| printer.print(&field))?;
    (0..shape.dimension_count).for_each(|_| printer.out.push('}'));
    printer.nulls.0.is_empty().then_some(())
}

/// The values of a packed field, as if each were a field of its own; None, and then the end, where one is cut off.
fn unpacked(mut packed: &[u8], wire_type: WireType) -> impl Iterator<Item = Option<Field<'_>>> {
    std::iter::from_fn(move || {
        if packed.is_empty() {
            return None;
        }
        let len = match wire_type {
            WireType::Varint => wire::read_varint(packed).ok().map(|(_, len)| len),
            WireType::Fixed32 => Some(4),
            WireType::Fixed64 => Some(8),
            WireType::Len => None,
        };
        let (value, rest) = len.and_then(|len| packed.split_at_checked(len)).unzip();
        packed = rest.unwrap_or_default();
        Some(value.map(|value| Field { number: VALUES, wire_type, whole: value, value }))
    })
}

/// Prints elements in row-major order.
struct Printer<'a> {
    out: &'a mut String,
    element: ScalarKind,
    delimiter: u8,
    shape: Shape,
    nulls: Nulls<'a>,
    /// Of the next element.
    index: usize,
    scratch: String,
}

impl Printer<'_> {
    fn print(&mut self, field: &Field<'_>) -> Option<()> {
        self.print_braces();
        let null = self.nulls.take(self.index);
        self.index += 1;
        if null {
            self.out.push_str("NULL");
            return Some(());
        }
        self.scratch.clear();
        print_scalar(&mut self.scratch, self.element, field)?;
        self.print_quoted();
        Some(())
    }

    /// What stands before the element: the braces of the levels that end and start there.
    fn print_braces(&mut self) {
        let mut span = 1;
        let inner = self.shape.lengths[1..self.shape.dimension_count].iter().rev();
        let starts = |length: &&u32| {
            span *= **length as usize;
            self.index.is_multiple_of(span)
        };
        let mut levels = inner.take_while(starts).count();
        if self.index == 0 {
            levels += 1;
        } else {
            (0..levels).for_each(|_| self.out.push('}'));
            self.out.push(char::from(self.delimiter));
        }
        (0..levels).for_each(|_| self.out.push('{'));
    }

    fn print_quoted(&mut self) {
        let text = self.scratch.as_str();
        let special =
            |byte: u8| byte == self.delimiter || matches!(byte, b'"' | b'\\' | b'{' | b'}' | b' ' | b'\t'..=b'\r');
        if !text.is_empty() && !text.eq_ignore_ascii_case("NULL") && !text.bytes().any(special) {
            self.out.push_str(text);
            return;
        }
        self.out.push('"');
        for c in text.chars() {
            if matches!(c, '"' | '\\') {
                self.out.push('\\');
            }
            self.out.push(c);
        }
        self.out.push('"');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use prost::Message;
    use tidegate_proto::v1;

    fn encode(kind: ScalarKind, delimiter: u8, text: &str) -> Option<Vec<u8>> {
        let mut out = BytesMut::new();
        put_array(&mut out, 1, kind, delimiter, text.as_bytes())?;
        let field = wire::Fields::new(&out).next().expect("a field").expect("well formed");
        assert_eq!(field.whole.len(), out.len());
        Some(field.value.to_vec())
    }

    fn strings(text: &str) -> Option<v1::StringArray> {
        encode(ScalarKind::Text, b',', text).map(|bytes| v1::StringArray::decode(&bytes[..]).expect("valid"))
    }

    fn integers(text: &str) -> Option<v1::Int32Array> {
        encode(ScalarKind::Int32, b',', text).map(|bytes| v1::Int32Array::decode(&bytes[..]).expect("valid"))
    }

    /// Prints as `array_out` does.
    fn printed(element: Option<&String>) -> String {
        let Some(text) = element else { return "NULL".to_owned() };
        let special = |c: char| "{},\"\\ \t\n\r\u{b}\u{c}".contains(c);
        if text.is_empty() || text.eq_ignore_ascii_case("null") || text.contains(special) {
            format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
        } else {
            text.clone()
        }
    }

    proptest! {
        #[test]
        fn any_strings_are_read_back(
            elements in proptest::collection::vec(proptest::option::of("(?s)(.{0,6}|null|[{},\"\\\\ ]{0,4})"), 1..12)
        ) {
            let text: Vec<String> = elements.iter().map(|element| printed(element.as_ref())).collect();
            let read = strings(&format!("{{{}}}", text.join(","))).expect("valid");
            let nulls: Vec<u32> = (0..).zip(&elements).filter(|(_, e)| e.is_none()).map(|(n, _)| n).collect();
            let values: Vec<String> = elements.into_iter().map(Option::unwrap_or_default).collect();
            prop_assert_eq!(read, v1::StringArray { values, nulls, layout: None });
        }

        #[test]
        fn any_matrix_is_read_back(rows in 1_usize..5, columns in 1_usize..5, lower in any::<(i16, i16)>(), seed in any::<i32>()) {
            let values: Vec<i32> = (0..rows * columns).map(|n| seed.wrapping_mul(n as i32)).collect();
            let lines: Vec<String> = values.chunks(columns)
                .map(|row| format!("{{{}}}", row.iter().map(i32::to_string).collect::<Vec<_>>().join(","))).collect();
            let lower = [i32::from(lower.0), i32::from(lower.1)];
            let text = format!("[{}:{}][{}:{}]={{{}}}", lower[0], lower[0] + rows as i32 - 1, lower[1],
                lower[1] + columns as i32 - 1, lines.join(","));
            let layout = v1::ArrayLayout {
                dimensions: vec![rows as u32, columns as u32],
                lower_bounds: if lower == [1, 1] { vec![] } else { lower.to_vec() },
            };
            prop_assert_eq!(integers(&text), Some(v1::Int32Array { values, nulls: vec![], layout: Some(layout) }));
        }

        #[test]
        fn arbitrary_text_never_panics(text in prop_oneof!["\\PC{0,30}", "[\\[\\]{},;:=\"\\\\a1 -]{0,20}"]) {
            for kind in [ScalarKind::Bool, ScalarKind::Int32, ScalarKind::Double, ScalarKind::Bytes, ScalarKind::Text] {
                let _read_or_refused = encode(kind, b',', &text);
            }
        }
    }

    #[test]
    fn an_empty_array_has_neither_values_nor_layout() {
        assert_eq!(strings("{}"), Some(v1::StringArray::default()));
        assert_eq!(integers("{}"), Some(v1::Int32Array::default()));
    }

    #[test]
    fn a_null_holds_zero_and_is_listed() {
        let layout = None;
        assert_eq!(integers("{1,NULL,3}"), Some(v1::Int32Array { values: vec![1, 0, 3], nulls: vec![1], layout }));
    }

    #[test]
    fn boxes_are_delimited_by_semicolons() {
        let bytes = encode(ScalarKind::Text, b';', "{(1,1),(0,0);(2,2),(1,1)}").expect("valid");
        let read = v1::StringArray::decode(&bytes[..]).expect("valid");
        assert_eq!(read.values, ["(1,1),(0,0)", "(2,2),(1,1)"]);
    }

    #[test]
    fn quoted_elements_of_every_kind_are_read() {
        let bytes = encode(ScalarKind::Bytes, b',', r#"{"\\x00ff",NULL,"\\x"}"#).expect("valid");
        let read = v1::BytesArray::decode(&bytes[..]).expect("valid");
        assert_eq!((read.values[0].as_ref(), read.values.len(), read.nulls), (&[0_u8, 255][..], 3, vec![1]));

        let text = r#"{"1970-01-01 00:00:01+00",infinity}"#;
        let bytes = encode(ScalarKind::Timestamptz, b',', text).expect("valid");
        let read = v1::TimestamptzArray::decode(&bytes[..]).expect("valid");
        let time = v1::timestamptz::Value::Time(prost_types::Timestamp { seconds: 1, nanos: 0 });
        assert_eq!(read.values[0].value, Some(time));
        assert_eq!(read.values[1].value, Some(v1::timestamptz::Value::Text("infinity".to_owned())));
    }

    #[test]
    fn malformed_arrays_are_refused() {
        for text in [
            "",
            "1",
            "{",
            "}",
            "{1",
            "{1,}",
            "{,1}",
            "{1}}",
            "{1}x",
            "{{1},{2,3}}",
            "{{1},2}",
            "{1,{2}}",
            "{{}}",
            "{{{{{{{1}}}}}}}",
            "[1:2]={1}",
            "[1:1][1:1]={1}",
            "[1]={1}",
            "[1:1]{1}",
            "{\"1}",
            "{\"1\\",
            "{\"1\\\"}",
            "{1;2}",
            "{\"1\"2}",
            "[2147483647:-2147483648]={1}",
        ] {
            assert_eq!(integers(text), None, "{text}");
        }
    }
}
