//! PostgreSQL's binary values to the API's values, without loss. A type that is not in the table here is refused
//! before its statement runs ([`unsupported`]), never guessed.

mod container;
mod datetime;
mod float;
mod geometry;
mod network;
mod numeric;
mod reader;
mod search;
mod various;

use postgres_types::{Kind, Type};
use uuid::Uuid;

pub(super) use container::{TEXT_BYTES_MAX, delimiter, element_quoted};
use reader::Reader;

use crate::postgres::types;
use crate::proto::v1;

/// Bytes that are not what their type says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the bytes do not have the type's format")]
pub struct Malformed;

/// Why a value cannot be given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Undecodable {
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("values of type {0} have no form here")]
    Type(String),
    #[error("the type was altered since it was read")]
    Changed,
    #[error("the text form is too long")]
    Long,
}

/// Values within each other in one text: rows in rows, arrays in rows, and so on.
const DEPTH_MAX: usize = 100;

/// The name of the first type in `ty` that has no decoder, if any.
pub fn unsupported(ty: &Type) -> Option<String> {
    let is_known = |ty: &Type| match ty.kind() {
        Kind::Simple | Kind::Pseudo => native(ty) || form(ty).is_some() || *ty == Type::RECORD,
        _made_of_others => true,
    };
    match ty.kind() {
        // Most are, and cost nothing.
        Kind::Simple if is_known(ty) => None,
        _other => types::within(ty).find(|part| !is_known(part)).map(|part| part.name().to_owned()),
    }
}

/// One value; `None` is NULL.
pub fn value(ty: &Type, bytes: Option<&[u8]>) -> Result<v1::Value, Undecodable> {
    let kind = match bytes {
        None => v1::value::Kind::NullValue(v1::NullValue::Unspecified.into()),
        Some(bytes) => kind(ty, bytes)?,
    };
    Ok(v1::Value { kind: Some(kind) })
}

fn kind(ty: &Type, bytes: &[u8]) -> Result<v1::value::Kind, Undecodable> {
    use v1::value::Kind as Value;
    match ty.kind() {
        Kind::Domain(inner) => return kind(inner, bytes),
        Kind::Array(element) if !is_vector(ty) => return container::array(element, bytes, value, text, DEPTH_MAX),
        _other => {}
    }
    let mut reader = Reader::new(bytes);
    let value = match *ty {
        Type::BOOL => Value::BoolValue(reader.u8()? != 0),
        Type::INT2 => Value::Int64Value(reader.i16()?.into()),
        Type::INT4 => Value::Int64Value(reader.i32()?.into()),
        Type::INT8 => Value::Int64Value(reader.i64()?),
        Type::OID => Value::Int64Value(reader.u32()?.into()),
        Type::FLOAT4 => Value::DoubleValue(reader.f32()?.into()),
        Type::FLOAT8 => Value::DoubleValue(reader.f64()?),
        Type::BYTEA => return Ok(Value::BytesValue(bytes.to_vec())),
        _ => return Ok(Value::TextValue(text(ty, bytes, DEPTH_MAX)?)),
    };
    reader.end()?;
    Ok(value)
}

/// How long the value is, when it is text or has texts in it.
pub fn text_bytes(value: &v1::Value) -> usize {
    match &value.kind {
        Some(v1::value::Kind::TextValue(text)) => text.len(),
        Some(v1::value::Kind::ArrayValue(array)) => array.elements.iter().map(text_bytes).sum(),
        _other => 0,
    }
}

/// Types with a field of their own in [`v1::Value`].
fn native(ty: &Type) -> bool {
    let natives = [Type::BOOL, Type::INT2, Type::INT4, Type::INT8, Type::OID, Type::FLOAT4, Type::FLOAT8, Type::BYTEA];
    natives.contains(ty)
}

/// A text form that PostgreSQL reads back as the same value; so many values may be within each other below it.
fn text(ty: &Type, bytes: &[u8], depth: usize) -> Result<String, Undecodable> {
    let depth = depth.checked_sub(1).ok_or(Undecodable::Long)?;
    match ty.kind() {
        Kind::Enum(_) => return utf8(bytes).map_err(Into::into),
        Kind::Domain(inner) => return text(inner, bytes, depth),
        Kind::Array(element) if is_vector(ty) => {
            return container::array_text(element, bytes, text, depth).map(|array| various::blanks(&array));
        }
        Kind::Array(element) => return container::array_text(element, bytes, text, depth),
        Kind::Range(bound) => return container::range_text(bound, bytes, text, depth),
        Kind::Multirange(bound) => return container::multirange_text(bound, bytes, text, depth),
        Kind::Composite(fields) => return container::row_text(Some(fields), bytes, text, depth),
        _scalar => {}
    }
    if *ty == Type::RECORD {
        return container::row_text(None, bytes, text, depth);
    }
    if let Some(form) = form(ty) {
        return form(bytes).map_err(Into::into);
    }
    // Of what is neither, the value is its text, which there is none of: a field of an anonymous row may be anything.
    if !native(ty) {
        return Err(Undecodable::Type(ty.name().to_owned()));
    }
    match kind(ty, bytes) {
        Ok(v1::value::Kind::BoolValue(value)) => Ok(if value { "t" } else { "f" }.to_owned()),
        Ok(v1::value::Kind::Int64Value(value)) => Ok(value.to_string()),
        Ok(v1::value::Kind::DoubleValue(value)) if *ty == Type::FLOAT8 => Ok(float::float8(value)),
        // The shortest text of the narrow value, not of the widened one.
        Ok(v1::value::Kind::DoubleValue(_)) if *ty == Type::FLOAT4 => Ok(float::float4(Reader::new(bytes).f32()?)),
        Ok(v1::value::Kind::BytesValue(value)) => Ok(format!("\\x{}", hex::encode(value))),
        Ok(_other) => Err(Undecodable::Type(ty.name().to_owned())),
        Err(error) => Err(error),
    }
}

/// `int2vector` and `oidvector`: arrays with a text form of their own.
fn is_vector(ty: &Type) -> bool {
    matches!(*ty, Type::INT2_VECTOR | Type::OID_VECTOR)
}

/// Digits without an exponent, which every type of numbers reads, with PostgreSQL's names for the infinities.
pub(super) fn float_text(value: f64) -> String {
    if value.is_nan() {
        "NaN".to_owned()
    } else if value.is_infinite() {
        if value > 0.0 { "Infinity" } else { "-Infinity" }.to_owned()
    } else {
        value.to_string()
    }
}

type Form = fn(&[u8]) -> Result<String, Malformed>;

/// The text form of a scalar type without a field of its own in [`v1::Value`].
fn form(ty: &Type) -> Option<Form> {
    Some(match *ty {
        Type::TEXT
        | Type::VARCHAR
        | Type::BPCHAR
        | Type::NAME
        | Type::UNKNOWN
        | Type::XML
        | Type::JSON
        | Type::REFCURSOR
        | Type::VOID => utf8,
        Type::JSONB | Type::JSONPATH => versioned,
        Type::CHAR => single_byte,
        Type::NUMERIC => numeric::numeric,
        Type::UUID => uuid,
        Type::DATE => datetime::date,
        Type::TIME => datetime::time,
        Type::TIMETZ => datetime::time_with_zone,
        Type::TIMESTAMP => |bytes| datetime::timestamp(bytes, ""),
        Type::TIMESTAMPTZ => |bytes| datetime::timestamp(bytes, "Z"),
        Type::INTERVAL => datetime::interval,
        Type::INET => |bytes| network::address(bytes, false),
        Type::CIDR => |bytes| network::address(bytes, true),
        Type::MACADDR | Type::MACADDR8 => |bytes| Ok(network::mac(bytes)),
        Type::BIT | Type::VARBIT => network::bits,
        Type::XID | Type::CID => |bytes| Reader::new(bytes).u32().map(|value| value.to_string()),
        Type::XID8 => |bytes| Reader::new(bytes).u64().map(|value| value.to_string()),
        Type::PG_LSN => |bytes| Reader::new(bytes).u64().map(|lsn| format!("{:X}/{:X}", lsn >> 32, lsn & 0xFFFF_FFFF)),
        Type::MONEY => various::money,
        Type::TS_VECTOR => search::vector,
        Type::TSQUERY => search::query,
        Type::POINT => geometry::point,
        Type::LSEG => geometry::segment,
        Type::BOX => geometry::rectangle,
        Type::PATH => geometry::path,
        Type::POLYGON => geometry::polygon,
        Type::LINE => geometry::line,
        Type::CIRCLE => geometry::circle,
        Type::TID => various::tid,
        Type::PG_SNAPSHOT | Type::TXID_SNAPSHOT => various::snapshot,
        // Only the server knows their names; it reads the numbers too.
        Type::REGCLASS
        | Type::REGTYPE
        | Type::REGPROC
        | Type::REGPROCEDURE
        | Type::REGOPER
        | Type::REGOPERATOR
        | Type::REGNAMESPACE
        | Type::REGROLE
        | Type::REGCONFIG
        | Type::REGDICTIONARY
        | Type::REGCOLLATION => |bytes| Reader::new(bytes).u32().map(|oid| oid.to_string()),
        _ => return extensions_form(ty),
    })
}

/// Types of extensions have no fixed OID. Nobody but a superuser makes a scalar type, so a name says what it is.
fn extensions_form(ty: &Type) -> Option<Form> {
    Some(match ty.name() {
        "citext" => utf8,
        "hstore" => various::hstore,
        "ltree" | "lquery" | "ltxtquery" => versioned,
        "vector" => various::vector,
        "geometry" | "geography" => |bytes| Ok(various::hexadecimal(bytes)),
        _unknown => return None,
    })
}

fn utf8(bytes: &[u8]) -> Result<String, Malformed> {
    String::from_utf8(bytes.to_vec()).map_err(|_not_utf8| Malformed)
}

/// A version byte of 1, then text.
fn versioned(bytes: &[u8]) -> Result<String, Malformed> {
    match bytes.split_first() {
        Some((1, text)) => utf8(text),
        _other => Err(Malformed),
    }
}

/// `"char"`: a byte above 127 is written in octal, 0 as nothing.
fn single_byte(bytes: &[u8]) -> Result<String, Malformed> {
    match bytes {
        [0] => Ok(String::new()),
        [byte] if byte.is_ascii() => Ok(char::from(*byte).to_string()),
        [byte] => Ok(format!("\\{byte:03o}")),
        _other => Err(Malformed),
    }
}

fn uuid(bytes: &[u8]) -> Result<String, Malformed> {
    Uuid::from_slice(bytes).map(|uuid| uuid.to_string()).map_err(|_length| Malformed)
}

#[cfg(test)]
mod tests {
    use postgres_types::Field;

    use super::*;

    #[test]
    fn short_and_long_values_are_errors() {
        assert_eq!(value(&Type::INT4, Some(&[0, 0])), Err(Undecodable::Malformed(Malformed)));
        assert_eq!(value(&Type::INT4, Some(&[0, 0, 0, 0, 0])), Err(Undecodable::Malformed(Malformed)));
        assert!(value(&Type::INT4_ARRAY, Some(&[0, 0, 0, 7])).is_err());
    }

    /// One field, with the OID that stands before it.
    fn row(oid: u32, field: &[u8]) -> Vec<u8> {
        let length = u32::try_from(field.len()).unwrap().to_be_bytes();
        [&1_u32.to_be_bytes(), &oid.to_be_bytes(), &length, field].concat()
    }

    #[test]
    fn a_field_is_read_by_the_type_that_comes_with_it() {
        let declared = |ty| vec![Field::new("a".to_owned(), ty)];
        let composite = |ty| Type::new("pair".to_owned(), 70_000, Kind::Composite(declared(ty)), "public".to_owned());
        let of = |ty: &Type, bytes: &[u8]| text(ty, bytes, DEPTH_MAX);
        let five = row(Type::INT8.oid(), &5_i64.to_be_bytes());
        assert_eq!(of(&composite(Type::INT8), &five), Ok("(5)".to_owned()));
        assert_eq!(of(&composite(Type::FLOAT8), &five), Ok("(5)".to_owned()));
        let mood = Type::new("mood".to_owned(), 70_001, Kind::Enum(vec!["ok".to_owned()]), "public".to_owned());
        let ok = row(mood.oid(), b"ok");
        assert_eq!(of(&composite(mood), &ok), Ok("(ok)".to_owned()));
        assert_eq!(of(&composite(Type::INT8), &ok), Err(Undecodable::Changed));
        assert_eq!(of(&Type::RECORD, &ok), Err(Undecodable::Type("oid 70001".to_owned())));
        assert_eq!(
            of(&Type::RECORD, &row(Type::PG_NODE_TREE.oid(), b"x")),
            Err(Undecodable::Type("pg_node_tree".to_owned()))
        );
    }

    #[test]
    fn a_type_without_a_form_is_named() {
        assert_eq!(unsupported(&Type::PG_NODE_TREE).as_deref(), Some("pg_node_tree"));
        assert_eq!(unsupported(&Type::MONEY_ARRAY), None);
        assert_eq!(unsupported(&Type::NUMERIC_ARRAY), None);
        assert_eq!(unsupported(&Type::TS_RANGE), None);
    }

    #[test]
    fn elements_are_quoted_as_postgresql_does() {
        assert_eq!(element_quoted("plain", ','), "plain");
        assert_eq!(element_quoted("null", ','), "\"null\"");
        assert_eq!(element_quoted("", ','), "\"\"");
        assert_eq!(element_quoted("a\"b\\c", ','), "\"a\\\"b\\\\c\"");
    }
}
