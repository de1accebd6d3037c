//! Documents and queries of the text search as text: quoted lexemes, with positions and weights, and operators.

use std::fmt::Write as _;

use super::Malformed;
use super::reader::Reader;

/// A lexeme in quotes.
fn quoted(lexeme: &str, out: &mut String) {
    out.push('\'');
    for c in lexeme.chars() {
        if matches!(c, '\'' | '\\') {
            out.push(c);
        }
        out.push(c);
    }
    out.push('\'');
}

/// `'cat':3A,7 'rat':2`.
pub(super) fn vector(bytes: &[u8]) -> Result<String, Malformed> {
    let mut reader = Reader::new(bytes);
    let mut text = String::new();
    for index in 0..reader.i32()? {
        if index > 0 {
            text.push(' ');
        }
        quoted(reader.terminated()?, &mut text);
        for place in 0..reader.u16()? {
            let entry = reader.u16()?;
            let weight = match entry >> 14 {
                3 => "A",
                2 => "B",
                1 => "C",
                _default => "",
            };
            let before = if place == 0 { ':' } else { ',' };
            let _infallible = write!(text, "{before}{}{weight}", entry & 0x3FFF);
        }
    }
    reader.end()?;
    Ok(text)
}

/// How deep a query may nest; PostgreSQL's own limit of its size allows more than this program's stack.
const DEPTH_MAX: usize = 1_000;

const NOT: u8 = 1;
const AND: u8 = 2;
const OR: u8 = 3;
const PHRASE: u8 = 4;

/// `'cat' & !'rat':AB | 'fat':*`, with parentheses where PostgreSQL writes them.
pub(super) fn query(bytes: &[u8]) -> Result<String, Malformed> {
    let mut reader = Reader::new(bytes);
    let mut text = String::new();
    if reader.i32()? > 0 {
        text = node(&mut reader, 0, false, DEPTH_MAX)?;
    }
    reader.end()?;
    Ok(text)
}

fn priority(operator: u8) -> u8 {
    match operator {
        NOT => 4,
        PHRASE => 3,
        AND => 2,
        _or => 1,
    }
}

/// The node that comes next, in prefix order with the right operand first.
fn node(reader: &mut Reader<'_>, outer: u8, is_right_of_phrase: bool, depth: usize) -> Result<String, Malformed> {
    const VALUE: u8 = 1;
    if depth == 0 {
        return Err(Malformed);
    }
    if reader.u8()? == VALUE {
        return value(reader);
    }
    let operator = reader.u8()?;
    if operator == NOT {
        let operand = node(reader, priority(NOT), false, depth - 1)?;
        return Ok(if priority(NOT) < outer { format!("( !{operand} )") } else { format!("!{operand}") });
    }
    let sign = match operator {
        AND => " & ".to_owned(),
        OR => " | ".to_owned(),
        PHRASE => match reader.u16()? {
            1 => " <-> ".to_owned(),
            distance => format!(" <{distance}> "),
        },
        _unknown => return Err(Malformed),
    };
    let own = priority(operator);
    let right = node(reader, own, operator == PHRASE, depth - 1)?;
    let left = node(reader, own, false, depth - 1)?;
    let text = format!("{left}{sign}{right}");
    let is_enclosed = own < outer || (operator == PHRASE && is_right_of_phrase);
    Ok(if is_enclosed { format!("( {text} )") } else { text })
}

fn value(reader: &mut Reader<'_>) -> Result<String, Malformed> {
    let (weights, is_prefix) = (reader.u8()?, reader.u8()? != 0);
    let mut text = String::new();
    quoted(reader.terminated()?, &mut text);
    if weights != 0 || is_prefix {
        text.push(':');
    }
    if is_prefix {
        text.push('*');
    }
    let names = [(8, 'A'), (4, 'B'), (2, 'C'), (1, 'D')];
    text.extend(names.into_iter().filter(|(bit, _name)| weights & bit != 0).map(|(_bit, name)| name));
    Ok(text)
}
