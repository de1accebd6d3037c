//! `numeric` as text, digit for digit: `1.50` keeps its zero.

use std::fmt::Write as _;

use super::Malformed;
use super::reader::Reader;

/// Base-10,000 digits, as PostgreSQL sends them.
pub(super) fn numeric(bytes: &[u8]) -> Result<String, Malformed> {
    let mut reader = Reader::new(bytes);
    let count = usize::try_from(reader.i16()?).map_err(|_negative| Malformed)?;
    let weight = i32::from(reader.i16()?);
    let sign = reader.u16()?;
    let scale = usize::from(reader.u16()?);
    match sign {
        0xC000 => return Ok("NaN".to_owned()),
        0xD000 => return Ok("Infinity".to_owned()),
        0xF000 => return Ok("-Infinity".to_owned()),
        0x0000 | 0x4000 => {}
        _unknown => return Err(Malformed),
    }
    let digits = (0..count).map(|_| reader.i16()).collect::<Result<Vec<_>, _>>()?;
    reader.end()?;
    // The group at position 0 counts units, 1 ten thousands, -1 ten thousandths.
    let group = |position: i32| {
        let index = usize::try_from(weight - position).ok();
        index.and_then(|index| digits.get(index)).copied().unwrap_or(0)
    };
    let mut text = String::new();
    if sign == 0x4000 {
        text.push('-');
    }
    let first = weight.max(0);
    let _infallible = write!(text, "{}", group(first));
    for position in (0..first).rev() {
        let _infallible = write!(text, "{:04}", group(position));
    }
    if scale > 0 {
        let groups = i32::try_from(scale.div_ceil(4)).map_err(|_too_many| Malformed)?;
        text.push('.');
        let length = text.len() + scale;
        for position in 1..=groups {
            let _infallible = write!(text, "{:04}", group(-position));
        }
        text.truncate(length);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(weight: i16, sign: u16, scale: u16, digits: &[i16]) -> Vec<u8> {
        let count = i16::try_from(digits.len()).unwrap();
        let mut bytes = Vec::new();
        bytes.extend(count.to_be_bytes());
        bytes.extend(weight.to_be_bytes());
        bytes.extend(sign.to_be_bytes());
        bytes.extend(scale.to_be_bytes());
        bytes.extend(digits.iter().flat_map(|digit| digit.to_be_bytes()));
        bytes
    }

    #[test]
    fn no_digit_is_lost() {
        let of = |weight, sign, scale, digits: &[i16]| numeric(&encoded(weight, sign, scale, digits)).unwrap();
        assert_eq!(of(0, 0, 0, &[]), "0");
        assert_eq!(of(0, 0, 2, &[1, 5000]), "1.50");
        assert_eq!(of(1, 0x4000, 0, &[12, 3]), "-120003");
        assert_eq!(of(2, 0, 0, &[1]), "100000000");
        assert_eq!(of(-1, 0, 4, &[1]), "0.0001");
        assert_eq!(of(-2, 0, 7, &[1200]), "0.0000120");
        assert_eq!(of(0, 0xC000, 0, &[]), "NaN");
    }
}
