//! Arrays, ranges and rows. An array of one dimension that begins at 1 has a value of its own; everything else is
//! PostgreSQL's text form, quoted so that PostgreSQL reads it back.
//!
//! Does not know what its elements are: their decoders are parameters.

use std::fmt::Write as _;

use postgres_types::{Field, Type};

use super::reader::Reader;
use super::{Malformed, Undecodable};
use crate::proto::v1;

/// Dimensions that PostgreSQL allows.
const DIMENSIONS_MAX: i32 = 6;

/// Bytes of the texts within a text.
pub(in crate::query) const TEXT_BYTES_MAX: usize = 16 << 20;

/// Decodes one element to its text form; so many values may be within each other below it.
pub(super) type TextOf = fn(&Type, &[u8], usize) -> Result<String, Undecodable>;
/// Decodes one element to a value.
pub(super) type ValueOf = fn(&Type, Option<&[u8]>) -> Result<v1::Value, Undecodable>;

/// Texts within a text. Each quotes those inside it, which doubles their quotes: a row in a row, and so on, grows by
/// that far faster than its bytes do.
struct Inner {
    text: TextOf,
    depth: usize,
    bytes: usize,
}

impl Inner {
    fn new(text: TextOf, depth: usize) -> Self {
        Self { text, depth, bytes: 0 }
    }

    fn text(&mut self, ty: &Type, bytes: &[u8]) -> Result<String, Undecodable> {
        let text = (self.text)(ty, bytes, self.depth)?;
        self.bytes += text.len();
        if self.bytes > TEXT_BYTES_MAX { Err(Undecodable::Long) } else { Ok(text) }
    }
}

struct Array<'a> {
    /// Length and lower bound of each.
    dimensions: Vec<(usize, i32)>,
    elements: Vec<Option<&'a [u8]>>,
}

fn parse(bytes: &[u8]) -> Result<Array<'_>, Malformed> {
    let mut reader = Reader::new(bytes);
    let count = reader.i32()?;
    let (_has_nulls, _element_type) = (reader.i32()?, reader.u32()?);
    if !(0..=DIMENSIONS_MAX).contains(&count) {
        return Err(Malformed);
    }
    let mut dimensions = Vec::new();
    for _ in 0..count {
        let length = usize::try_from(reader.i32()?).map_err(|_negative| Malformed)?;
        dimensions.push((length, reader.i32()?));
    }
    let mut elements = Vec::new();
    if count > 0 {
        let total = dimensions.iter().try_fold(1_usize, |total, (length, _)| total.checked_mul(*length));
        for _ in 0..total.ok_or(Malformed)? {
            elements.push(reader.field()?);
        }
    }
    reader.end()?;
    Ok(Array { dimensions, elements })
}

pub(super) fn array(
    element_type: &Type,
    bytes: &[u8],
    value: ValueOf,
    text: TextOf,
    depth: usize,
) -> Result<v1::value::Kind, Undecodable> {
    let array = parse(bytes)?;
    match array.dimensions.as_slice() {
        [] | [(_, 1)] => {
            let elements =
                array.elements.into_iter().map(|element| value(element_type, element)).collect::<Result<_, _>>()?;
            Ok(v1::value::Kind::ArrayValue(v1::ArrayValue { elements }))
        }
        _bounds_or_dimensions => {
            Ok(v1::value::Kind::TextValue(text_of(element_type, &array, Inner::new(text, depth))?))
        }
    }
}

pub(super) fn array_text(ty: &Type, bytes: &[u8], text: TextOf, depth: usize) -> Result<String, Undecodable> {
    text_of(ty, &parse(bytes)?, Inner::new(text, depth))
}

fn text_of(element_type: &Type, array: &Array<'_>, mut inner: Inner) -> Result<String, Undecodable> {
    let mut out = String::new();
    if array.dimensions.iter().any(|(_, lower)| *lower != 1) {
        for (length, lower) in &array.dimensions {
            let upper = i64::from(*lower) + i64::try_from(*length).map_err(|_too_long| Malformed)? - 1;
            let _infallible = write!(out, "[{lower}:{upper}]");
        }
        out.push('=');
    }
    if array.dimensions.is_empty() {
        return Ok("{}".to_owned());
    }
    let delimiter = delimiter(element_type);
    let lengths: Vec<usize> = array.dimensions.iter().map(|(length, _)| *length).collect();
    let mut elements = array.elements.iter().map(|element| match element {
        None => Ok("NULL".to_owned()),
        Some(bytes) => inner.text(element_type, bytes).map(|text| element_quoted(&text, delimiter)),
    });
    braces(&lengths, delimiter, &mut elements, &mut out)?;
    Ok(out)
}

/// One pair of braces per dimension around the elements.
fn braces(
    lengths: &[usize],
    delimiter: char,
    elements: &mut dyn Iterator<Item = Result<String, Undecodable>>,
    out: &mut String,
) -> Result<(), Undecodable> {
    let Some((length, inner)) = lengths.split_first() else {
        out.push_str(&elements.next().ok_or(Malformed)??);
        return Ok(());
    };
    out.push('{');
    for index in 0..*length {
        if index > 0 {
            out.push(delimiter);
        }
        braces(inner, delimiter, elements, out)?;
    }
    out.push('}');
    Ok(())
}

/// What stands between an array's elements: a comma for every type of PostgreSQL's but one.
pub(in crate::query) fn delimiter(element_type: &Type) -> char {
    if *element_type == Type::BOX { ';' } else { ',' }
}

/// An element for an array's text form.
pub(in crate::query) fn element_quoted(text: &str, delimiter: char) -> String {
    let special =
        |c: char| matches!(c, '{' | '}' | '"' | '\\') || c == delimiter || c.is_ascii_whitespace() || c == '\x0b';
    if !text.is_empty() && !text.eq_ignore_ascii_case("null") && !text.contains(special) {
        return text.to_owned();
    }
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

pub(super) fn range_text(bound_type: &Type, bytes: &[u8], text: TextOf, depth: usize) -> Result<String, Undecodable> {
    range(bound_type, bytes, &mut Inner::new(text, depth))
}

fn range(bound_type: &Type, bytes: &[u8], inner: &mut Inner) -> Result<String, Undecodable> {
    const EMPTY: u8 = 0x01;
    const LOWER_INCLUSIVE: u8 = 0x02;
    const UPPER_INCLUSIVE: u8 = 0x04;
    const LOWER_INFINITE: u8 = 0x08;
    const UPPER_INFINITE: u8 = 0x10;
    let mut reader = Reader::new(bytes);
    let flags = reader.u8()?;
    if flags & EMPTY != 0 {
        return Ok("empty".to_owned());
    }
    let mut bound = |infinite: u8| -> Result<String, Undecodable> {
        if flags & infinite != 0 {
            return Ok(String::new());
        }
        let bytes = reader.field()?.ok_or(Malformed)?;
        Ok(part_quoted(&inner.text(bound_type, bytes)?))
    };
    let (lower, upper) = (bound(LOWER_INFINITE)?, bound(UPPER_INFINITE)?);
    reader.end()?;
    let open = if flags & LOWER_INCLUSIVE == 0 { '(' } else { '[' };
    let close = if flags & UPPER_INCLUSIVE == 0 { ')' } else { ']' };
    Ok(format!("{open}{lower},{upper}{close}"))
}

pub(super) fn multirange_text(
    bound_type: &Type,
    bytes: &[u8],
    text: TextOf,
    depth: usize,
) -> Result<String, Undecodable> {
    let (mut reader, mut inner) = (Reader::new(bytes), Inner::new(text, depth));
    let mut ranges = Vec::new();
    for _ in 0..reader.i32()? {
        ranges.push(range(bound_type, reader.field()?.ok_or(Malformed)?, &mut inner)?);
    }
    reader.end()?;
    Ok(format!("{{{}}}", ranges.join(",")))
}

/// A row, as a type declares its fields, or an anonymous one. The fields' types come with it, and a declaration counts
/// only where it says the same: it was read when its connection first met the type, which may have been altered since.
pub(super) fn row_text(
    declared: Option<&[Field]>,
    bytes: &[u8],
    text: TextOf,
    depth: usize,
) -> Result<String, Undecodable> {
    let (mut reader, mut inner) = (Reader::new(bytes), Inner::new(text, depth));
    let mut parts = Vec::new();
    for index in 0..reader.i32()? {
        let oid = reader.u32()?;
        let field = usize::try_from(index).ok().and_then(|index| declared?.get(index)).map(Field::type_);
        let part = match reader.field()? {
            None => String::new(),
            Some(bytes) => {
                let known = field.filter(|field| field.oid() == oid).cloned().or_else(|| Type::from_oid(oid));
                let field_type = known.ok_or_else(|| match declared {
                    Some(_) => Undecodable::Changed,
                    None => Undecodable::Type(format!("oid {oid}")),
                })?;
                part_quoted(&inner.text(&field_type, bytes)?)
            }
        };
        parts.push(part);
    }
    reader.end()?;
    Ok(format!("({})", parts.join(",")))
}

/// A bound of a range, or a field of a row.
fn part_quoted(text: &str) -> String {
    let special =
        |c: char| matches!(c, '(' | ')' | '[' | ']' | '"' | '\\' | ',') || c.is_ascii_whitespace() || c == '\x0b';
    if !text.is_empty() && !text.contains(special) {
        return text.to_owned();
    }
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\"\""))
}
