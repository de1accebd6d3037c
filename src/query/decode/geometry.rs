//! Points, lines and figures as text.

use super::Malformed;
use super::float::float8;
use super::reader::Reader;

/// So many points, each `(x,y)`, with commas between.
fn points(reader: &mut Reader<'_>, count: usize) -> Result<String, Malformed> {
    let mut all = Vec::new();
    for _ in 0..count {
        let (x, y) = (reader.f64()?, reader.f64()?);
        all.push(format!("({},{})", float8(x), float8(y)));
    }
    Ok(all.join(","))
}

/// So many points, and nothing after them.
fn only_points(bytes: &[u8], count: usize) -> Result<String, Malformed> {
    let mut reader = Reader::new(bytes);
    let text = points(&mut reader, count)?;
    reader.end()?;
    Ok(text)
}

pub(super) fn point(bytes: &[u8]) -> Result<String, Malformed> {
    only_points(bytes, 1)
}

pub(super) fn segment(bytes: &[u8]) -> Result<String, Malformed> {
    Ok(format!("[{}]", only_points(bytes, 2)?))
}

/// Opposite corners.
pub(super) fn rectangle(bytes: &[u8]) -> Result<String, Malformed> {
    only_points(bytes, 2)
}

/// Parentheses around a closed one, brackets around an open one.
pub(super) fn path(bytes: &[u8]) -> Result<String, Malformed> {
    let (closed, rest) = bytes.split_first().ok_or(Malformed)?;
    let text = counted(rest)?;
    Ok(if *closed == 0 { format!("[{text}]") } else { format!("({text})") })
}

pub(super) fn polygon(bytes: &[u8]) -> Result<String, Malformed> {
    Ok(format!("({})", counted(bytes)?))
}

fn counted(bytes: &[u8]) -> Result<String, Malformed> {
    let mut reader = Reader::new(bytes);
    let count = usize::try_from(reader.i32()?).map_err(|_negative| Malformed)?;
    let text = points(&mut reader, count)?;
    reader.end()?;
    Ok(text)
}

/// The three factors of its equation.
pub(super) fn line(bytes: &[u8]) -> Result<String, Malformed> {
    let [a, b, c] = three(bytes)?;
    Ok(format!("{{{a},{b},{c}}}"))
}

/// Centre and radius.
pub(super) fn circle(bytes: &[u8]) -> Result<String, Malformed> {
    let [x, y, radius] = three(bytes)?;
    Ok(format!("<({x},{y}),{radius}>"))
}

fn three(bytes: &[u8]) -> Result<[String; 3], Malformed> {
    let mut reader = Reader::new(bytes);
    let numbers = [reader.f64()?, reader.f64()?, reader.f64()?];
    reader.end()?;
    Ok(numbers.map(float8))
}
