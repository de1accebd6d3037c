//! The API's values to parameters of a prepared statement. Everything but `bytea` travels in text form, so that
//! PostgreSQL itself reads each value as the type that the statement wants and refuses what does not fit.

use std::error::Error as StdError;
use std::fmt;

use bytes::{BufMut as _, BytesMut};
use postgres_types::{Format, IsNull, Kind, ToSql, Type};

use super::decode::{delimiter, element_quoted, float_text};
use super::error::Error;
use crate::proto::v1;
use crate::proto::v1::value::Kind as Value;

/// Parameters of one statement: the protocol counts them in two bytes.
pub(super) const PARAMETERS_MAX: usize = 65_535;

/// One parameter, ready to be bound.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Parameter {
    Null,
    Text(String),
    Bytes(Vec<u8>),
}

/// What a caller sends is not for the log, and the driver logs parameters by `Debug`.
impl fmt::Debug for Parameter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// As many values as the statement has parameters, each converted to its parameter's type.
pub(super) fn parameters(types: &[Type], values: &[v1::Value]) -> Result<Vec<Parameter>, Error> {
    if values.len() > PARAMETERS_MAX {
        return Err(Error::ParametersMax { max: PARAMETERS_MAX });
    }
    if types.len() != values.len() {
        return Err(Error::ParameterCount { wanted: types.len(), given: values.len() });
    }
    let convert = |(index, (ty, value)): (usize, (&Type, &v1::Value))| {
        parameter(ty, value).map_err(|reason| Error::Parameter {
            number: index + 1,
            wanted: ty.name().to_owned(),
            reason,
        })
    };
    types.iter().zip(values).enumerate().map(convert).collect()
}

fn parameter(ty: &Type, value: &v1::Value) -> Result<Parameter, &'static str> {
    let base = base(ty);
    Ok(match value.kind.as_ref().ok_or("it has no value; give null_value for NULL")? {
        Value::NullValue(_) => Parameter::Null,
        Value::BytesValue(bytes) if *base == Type::BYTEA => Parameter::Bytes(bytes.clone()),
        Value::BytesValue(_) => return Err("bytes are taken for bytea only; send text instead"),
        Value::ArrayValue(array) => match base.kind() {
            Kind::Array(element) => Parameter::Text(array_text(element, array)?),
            _scalar => return Err("an array was given"),
        },
        scalar => Parameter::Text(scalar_text(scalar)?),
    })
}

/// Values that are the same text whatever type the statement wants; `None` when one of them is not.
pub(super) fn untyped(values: &[v1::Value]) -> Option<Vec<Parameter>> {
    let untyped = |value: &v1::Value| match value.kind.as_ref()? {
        Value::NullValue(_) => Some(Parameter::Null),
        scalar => scalar_text(scalar).ok().map(Parameter::Text),
    };
    if values.len() > PARAMETERS_MAX { None } else { values.iter().map(untyped).collect() }
}

/// What a domain is made from.
fn base(mut ty: &Type) -> &Type {
    while let Kind::Domain(inner) = ty.kind() {
        ty = inner;
    }
    ty
}

fn scalar_text(value: &Value) -> Result<String, &'static str> {
    Ok(match value {
        Value::BoolValue(value) => value.to_string(),
        Value::Int64Value(value) => value.to_string(),
        Value::DoubleValue(value) => float_text(*value),
        Value::TextValue(text) if text.contains('\0') => return Err("PostgreSQL's text cannot hold a NUL byte"),
        Value::TextValue(text) => text.clone(),
        Value::NullValue(_) | Value::BytesValue(_) | Value::ArrayValue(_) => return Err("it is no scalar"),
    })
}

fn array_text(element_type: &Type, array: &v1::ArrayValue) -> Result<String, &'static str> {
    let (is_bytea, delimiter) = (*base(element_type) == Type::BYTEA, delimiter(element_type));
    let element = |element: &v1::Value| -> Result<String, &'static str> {
        match element.kind.as_ref().ok_or("an element has no value; give null_value for NULL")? {
            Value::NullValue(_) => Ok("NULL".to_owned()),
            Value::BytesValue(bytes) if is_bytea => Ok(element_quoted(&format!("\\x{}", hex::encode(bytes)), ',')),
            Value::BytesValue(_) => Err("bytes are taken for bytea only; send text instead"),
            Value::ArrayValue(_) => Err("arrays of more than one dimension are given as text, as '{{1,2},{3,4}}'"),
            scalar => scalar_text(scalar).map(|text| element_quoted(&text, delimiter)),
        }
    };
    let elements = array.elements.iter().map(element).collect::<Result<Vec<_>, _>>()?;
    Ok(format!("{{{}}}", elements.join(delimiter.encode_utf8(&mut [0; 4]))))
}

impl ToSql for Parameter {
    fn to_sql(&self, _ty: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn StdError + Sync + Send>> {
        match self {
            Self::Null => return Ok(IsNull::Yes),
            Self::Text(text) => out.put_slice(text.as_bytes()),
            Self::Bytes(bytes) => out.put_slice(bytes),
        }
        Ok(IsNull::No)
    }

    fn accepts(_ty: &Type) -> bool {
        true
    }

    fn to_sql_checked(&self, ty: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn StdError + Sync + Send>> {
        self.to_sql(ty, out)
    }

    fn encode_format(&self, _ty: &Type) -> Format {
        match self {
            Self::Text(_) => Format::Text,
            Self::Null | Self::Bytes(_) => Format::Binary,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(kind: Value) -> v1::Value {
        v1::Value { kind: Some(kind) }
    }

    #[test]
    fn arrays_become_text_that_keeps_nulls_and_quotes() {
        let elements = vec![
            of(Value::TextValue("a,\"b".to_owned())),
            of(Value::NullValue(0)),
            of(Value::TextValue("NULL".to_owned())),
        ];
        let array = of(Value::ArrayValue(v1::ArrayValue { elements }));
        let text = Parameter::Text(r#"{"a,\"b",NULL,"NULL"}"#.to_owned());
        assert_eq!(parameter(&Type::TEXT_ARRAY, &array), Ok(text));
        assert!(parameter(&Type::TEXT, &array).is_err());
    }

    #[test]
    fn values_that_cannot_be_are_refused() {
        assert!(parameter(&Type::INT4, &v1::Value { kind: None }).is_err());
        assert!(parameter(&Type::TEXT, &of(Value::BytesValue(vec![1]))).is_err());
        assert!(parameter(&Type::TEXT, &of(Value::TextValue("a\0b".to_owned()))).is_err());
        let missing = parameters(&[Type::INT4], &[]).unwrap_err();
        assert_eq!(missing.to_string(), "the statement has 1 parameters ($1, $2 …), and 0 values were given");
    }

    #[test]
    fn parameters_never_show_in_logs() {
        assert_eq!(format!("{:?}", Parameter::Text("secret".to_owned())), "…");
    }
}
