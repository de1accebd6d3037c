//! Types of PostgreSQL's and of well-known extensions that fit nowhere else, as text.

use super::Malformed;
use super::float::float4;
use super::reader::Reader;

/// `money` as with `lc_monetary = C`, which the daemon's sessions have: `-$1,234.50`.
pub(super) fn money(bytes: &[u8]) -> Result<String, Malformed> {
    let mut reader = Reader::new(bytes);
    let cents = reader.i64()?;
    reader.end()?;
    let sign = if cents < 0 { "-" } else { "" };
    let (whole, part) = (cents.unsigned_abs() / 100, cents.unsigned_abs() % 100);
    let digits = whole.to_string();
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    Ok(format!("{sign}${grouped}.{part:02}"))
}

/// `hstore`: `"a"=>"1", "b"=>NULL`.
pub(super) fn hstore(bytes: &[u8]) -> Result<String, Malformed> {
    let quoted = |bytes: &[u8]| {
        let text = std::str::from_utf8(bytes).map_err(|_not_utf8| Malformed)?;
        Ok::<_, Malformed>(format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")))
    };
    let mut reader = Reader::new(bytes);
    let mut pairs = Vec::new();
    for _ in 0..reader.i32()? {
        let key = quoted(reader.field()?.ok_or(Malformed)?)?;
        let value = reader.field()?.map_or_else(|| Ok("NULL".to_owned()), quoted)?;
        pairs.push(format!("{key}=>{value}"));
    }
    reader.end()?;
    Ok(pairs.join(", "))
}

/// A row's place in its table: `(block,offset)`.
pub(super) fn tid(bytes: &[u8]) -> Result<String, Malformed> {
    let mut reader = Reader::new(bytes);
    let (block, offset) = (reader.u32()?, reader.u16()?);
    reader.end()?;
    Ok(format!("({block},{offset})"))
}

/// `pg_snapshot`: `xmin:xmax:xip,xip`.
pub(super) fn snapshot(bytes: &[u8]) -> Result<String, Malformed> {
    let mut reader = Reader::new(bytes);
    let count = reader.i32()?;
    let (lowest, highest) = (reader.u64()?, reader.u64()?);
    let running = (0..count).map(|_| reader.u64().map(|id| id.to_string())).collect::<Result<Vec<_>, _>>()?;
    reader.end()?;
    Ok(format!("{lowest}:{highest}:{}", running.join(",")))
}

/// `int2vector` and `oidvector` are arrays that are written with blanks.
pub(super) fn blanks(array: &str) -> String {
    array.trim_start_matches(|c| c != '{').trim_matches(['{', '}']).replace(',', " ")
}

/// pgvector's `vector`: `[1,2.5]`.
pub(super) fn vector(bytes: &[u8]) -> Result<String, Malformed> {
    let mut reader = Reader::new(bytes);
    let (count, _unused) = (reader.u16()?, reader.u16()?);
    let numbers = (0..count).map(|_| reader.f32().map(float4)).collect::<Result<Vec<_>, _>>()?;
    reader.end()?;
    Ok(format!("[{}]", numbers.join(",")))
}

/// PostGIS: the hexadecimal form of what is stored.
pub(super) fn hexadecimal(bytes: &[u8]) -> String {
    hex::encode_upper(bytes)
}
