//! Floating-point numbers as PostgreSQL writes them with its default `extra_float_digits`: the shortest digits that read
//! back as the same number, with an exponent where `%g` would have one.
//!
//! "The same number" is meant strictly, as in PostgreSQL's Ryū (Adams, 2018): digits that lie exactly halfway to the
//! next number do not count, though whoever rounds halves to even reads them back. So `3e10` as `float4` is
//! `3.0000001e+10`.

/// Exponents from -4 to below this are written out.
const WRITTEN_OUT_BELOW_F64: i32 = 15;
const WRITTEN_OUT_BELOW_F32: i32 = 6;
/// With so many digits, every number is told from its neighbours.
const DIGITS_MAX_F64: usize = 17;
const DIGITS_MAX_F32: usize = 9;

/// A `float8`.
pub(in crate::query) fn float8(value: f64) -> String {
    let parts = Parts::of_f64(value);
    let scientific = parts.strict(format!("{value:e}"), DIGITS_MAX_F64, |digits| {
        let rounded = format!("{value:.*e}", digits - 1);
        (rounded.parse() == Ok(value)).then_some(rounded)
    });
    text(scientific, value.is_finite(), value.is_nan(), value.is_sign_negative(), WRITTEN_OUT_BELOW_F64)
}

/// A `float4`.
pub(super) fn float4(value: f32) -> String {
    let parts = Parts::of_f32(value);
    let scientific = parts.strict(format!("{value:e}"), DIGITS_MAX_F32, |digits| {
        let rounded = format!("{value:.*e}", digits - 1);
        (rounded.parse() == Ok(value)).then_some(rounded)
    });
    text(scientific, value.is_finite(), value.is_nan(), value.is_sign_negative(), WRITTEN_OUT_BELOW_F32)
}

/// The size of a finite number: `significand` × 2^`exponent`.
#[derive(Debug, Clone, Copy)]
struct Parts {
    significand: u64,
    exponent: i32,
    /// The next smaller number is only half as far away as the next greater one.
    is_lowest: bool,
}

impl Parts {
    fn of_f64(value: f64) -> Self {
        let bits = value.to_bits();
        Self::of(bits & ((1 << 52) - 1), (bits >> 52) & 0x7ff, 52, 1_075)
    }

    fn of_f32(value: f32) -> Self {
        let bits = u64::from(value.to_bits());
        Self::of(bits & ((1 << 23) - 1), (bits >> 23) & 0xff, 23, 150)
    }

    fn of(fraction: u64, biased: u64, fraction_bits: u32, bias: i32) -> Self {
        let exponent = i32::try_from(biased.max(1)).unwrap_or_default() - bias;
        let hidden = if biased == 0 { 0 } else { 1 << fraction_bits };
        Self { significand: fraction | hidden, exponent, is_lowest: fraction == 0 && biased > 1 }
    }

    /// `shortest`, or where that is halfway to a neighbour, the shortest digits that are not. `rounded` answers with so
    /// many digits of the number (of two that are equally close, the even ones), if they read back; next to a power of
    /// two, the closest digits may not, and others of the same number do.
    fn strict(self, shortest: String, digits_max: usize, rounded: impl Fn(usize) -> Option<String>) -> String {
        let digits = shortest.bytes().take_while(|byte| *byte != b'e').filter(u8::is_ascii_digit).count();
        let fitting = |digits: usize| rounded(digits).filter(|rounded| !self.is_halfway(rounded));
        match fitting(digits.max(1)) {
            Some(closest) => closest,
            None if self.is_halfway(&shortest) => (digits + 1..=digits_max).find_map(fitting).unwrap_or(shortest),
            None => shortest,
        }
    }

    /// Whether the digits of `scientific` lie exactly halfway to the next number.
    fn is_halfway(self, scientific: &str) -> bool {
        self.halfway(scientific).unwrap_or(false)
    }

    /// `None` when it cannot be: numbers that are not finite, and what overflows, which is longer than any such point.
    fn halfway(self, scientific: &str) -> Option<bool> {
        let (mantissa, exponent) = scientific.trim_start_matches('-').split_once('e')?;
        let exponent: i32 = exponent.parse().ok()?;
        let digits = mantissa.replace('.', "");
        let decimal: u128 = digits.parse().ok()?;
        if decimal == 0 {
            return None;
        }
        // decimal × 10^tens = odd × 5^tens × 2^twos.
        let tens = exponent + 1 - i32::try_from(digits.len()).ok()?;
        let zeros = decimal.trailing_zeros();
        let (odd, twos) = (decimal >> zeros, i32::try_from(zeros).ok()? + tens);
        let above = (2 * u128::from(self.significand) + 1, self.exponent - 1);
        let below = if self.is_lowest {
            (4 * u128::from(self.significand) - 1, self.exponent - 2)
        } else {
            (2 * u128::from(self.significand) - 1, self.exponent - 1)
        };
        let fives = 5_u128.checked_pow(tens.unsigned_abs())?;
        let is_same = |(middle, exponent): (u128, i32)| {
            let (left, right) =
                if tens < 0 { (Some(odd), middle.checked_mul(fives)) } else { (odd.checked_mul(fives), Some(middle)) };
            twos == exponent && left.is_some() && left == right
        };
        Some(is_same(above) || is_same(below))
    }
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

    /// As PostgreSQL 15 writes them.
    #[test]
    fn numbers_between_others_read_as_postgresql_writes_them() {
        // Halfway to a neighbour with the shortest digits.
        assert_eq!(float4(3e10), "3.0000001e+10");
        assert_eq!(float4(-3e10), "-3.0000001e+10");
        // Of two that are equally close, the even one.
        assert_eq!(float8(f64::from_bits(0x4316_9e2b_51d8_e2e9)), "1.5915895953962822e+15");
        assert_eq!(float8(f64::from_bits(0x4301_9cdc_da41_741a)), "619693371567747.2");
        // Powers of two, below which numbers are twice as dense.
        assert_eq!(float8(f64::from_bits(0x4580_0000_0000_0000)), "6.189700196426902e+26");
        assert_eq!(float8(f64::from_bits(1)), "5e-324");
        assert_eq!(float8(f64::MIN_POSITIVE), "2.2250738585072014e-308");
        assert_eq!(float4(f32::from_bits(1)), "1e-45");
    }
}
