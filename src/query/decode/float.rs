//! Floating-point numbers as PostgreSQL writes them with its default `extra_float_digits`: the shortest digits that read
//! back as the same number, with an exponent where `%g` would have one.

/// Exponents from -4 to below this are written out.
const WRITTEN_OUT_BELOW_F64: i32 = 15;
const WRITTEN_OUT_BELOW_F32: i32 = 6;

/// A `float8`.
pub(in crate::query) fn float8(value: f64) -> String {
    text(format!("{value:e}"), value.is_finite(), value.is_nan(), value.is_sign_negative(), WRITTEN_OUT_BELOW_F64)
}

/// A `float4`.
pub(super) fn float4(value: f32) -> String {
    text(format!("{value:e}"), value.is_finite(), value.is_nan(), value.is_sign_negative(), WRITTEN_OUT_BELOW_F32)
}

/// `scientific` is `-1.25e-7`.
fn text(scientific: String, is_finite: bool, is_nan: bool, is_negative: bool, written_out_below: i32) -> String {
    if is_nan {
        return "NaN".to_owned();
    }
    let sign = if is_negative { "-" } else { "" };
    if !is_finite {
        return format!("{sign}Infinity");
    }
    let unsigned = scientific.trim_start_matches('-');
    let Some((mantissa, exponent)) = unsigned.split_once('e') else { return scientific };
    let Ok(exponent) = exponent.parse::<i32>() else { return scientific };
    if !(-4..written_out_below).contains(&exponent) {
        let towards = if exponent < 0 { '-' } else { '+' };
        return format!("{sign}{mantissa}e{towards}{:02}", exponent.unsigned_abs());
    }
    let digits = mantissa.replace('.', "");
    let zeros = |count: i32| "0".repeat(usize::try_from(count).unwrap_or_default());
    let length = i32::try_from(digits.len()).unwrap_or(i32::MAX);
    let point = exponent + 1;
    let number = match usize::try_from(point) {
        Ok(point) if point > 0 && point < digits.len() => format!("{}.{}", &digits[..point], &digits[point..]),
        Ok(point) if point > 0 => format!("{digits}{}", zeros(exponent + 1 - length)),
        _below_one => format!("0.{}{digits}", zeros(-point)),
    };
    format!("{sign}{number}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_as_postgresql_writes_them() {
        let cases = [
            (0.0, "0"),
            (-0.0, "-0"),
            (1.0, "1"),
            (0.1, "0.1"),
            (-12.5, "-12.5"),
            (1e14, "100000000000000"),
            (1e15, "1e+15"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1.5e-7, "1.5e-07"),
            (f64::MAX, "1.7976931348623157e+308"),
            (f64::INFINITY, "Infinity"),
            (f64::NEG_INFINITY, "-Infinity"),
            (f64::NAN, "NaN"),
        ];
        for (value, wanted) in cases {
            assert_eq!(float8(value), wanted);
        }
        assert_eq!(float4(100_000.0), "100000");
        assert_eq!(float4(1e6), "1e+06");
        assert_eq!(float4(0.1), "0.1");
    }
}
