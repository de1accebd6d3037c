//! Values as people read them: durations, sizes, counts, times, states. Pure.

use std::fmt::Write as _;
use std::time::Duration;

use indicatif::{HumanBytes, HumanCount};
use prost_types::Timestamp;
use prost_types::value::Kind;
use time::OffsetDateTime;

/// As `7 ms`, `1.2 s`, `2 min 5 s`, `3 h 20 min`.
pub fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 if duration.as_millis() < 1 => "< 1 ms".to_owned(),
        0 => format!("{} ms", duration.as_millis()),
        1..=59 => format!("{:.1} s", duration.as_secs_f64()),
        60..=3_599 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3_600, seconds % 3_600 / 60),
    }
}

/// The time from `start` to `end`; empty when one of them is not known.
pub fn elapsed(start: Option<&Timestamp>, end: Option<&Timestamp>) -> String {
    let (Some(start), Some(end)) = (start.and_then(moment), end.and_then(moment)) else { return String::new() };
    duration(Duration::try_from(end - start).unwrap_or_default())
}

/// As `2026-11-21 01:44:26 UTC`; empty when unset.
pub fn time(timestamp: Option<&Timestamp>) -> String {
    let Some(moment) = timestamp.and_then(moment) else { return String::new() };
    let (hour, minute, second) = moment.to_hms();
    format!("{} {hour:02}:{minute:02}:{second:02} UTC", moment.date())
}

fn moment(timestamp: &Timestamp) -> Option<OffsetDateTime> {
    let nanoseconds = i128::from(timestamp.seconds) * 1_000_000_000 + i128::from(timestamp.nanos);
    OffsetDateTime::from_unix_timestamp_nanos(nanoseconds).ok()
}

/// As `12.34 MiB`.
pub fn bytes(bytes: i64) -> String {
    HumanBytes(u64::try_from(bytes).unwrap_or_default()).to_string()
}

/// As `12,345`.
pub fn count(count: i64) -> String {
    HumanCount(u64::try_from(count).unwrap_or_default()).to_string()
}

/// As `1 table`, `12,345 rows`.
pub fn plural(number: i64, one: &str) -> String {
    if number == 1 { format!("1 {one}") } else { format!("{} {one}s", count(number)) }
}

/// An enum value's name without its prefix, as `ACTIVE`.
pub fn state(name: &'static str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap_or(name).to_owned()
}

/// A value of an operation's result.
pub fn value(value: &prost_types::Value) -> String {
    match &value.kind {
        None | Some(Kind::NullValue(_)) => String::new(),
        Some(Kind::BoolValue(yes)) => if *yes { "yes" } else { "no" }.to_owned(),
        Some(Kind::NumberValue(number)) => number.to_string(),
        Some(Kind::StringValue(text)) => printable(text),
        Some(Kind::ListValue(list)) => list.values.iter().map(self::value).collect::<Vec<_>>().join(", "),
        Some(Kind::StructValue(fields)) => {
            let pairs = fields.fields.iter().map(|(name, field)| format!("{name} {}", self::value(field)));
            pairs.collect::<Vec<_>>().join(", ")
        }
    }
}

/// Text from elsewhere, without the power to steer the terminal: control characters become `\x1b` and the like.
pub fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' => out.push(character),
            '\t' => out.push_str("    "),
            character if character.is_control() => {
                // Writing to a String cannot fail.
                let _ = write!(out, "\\x{:02x}", u32::from(character));
            }
            character => out.push(character),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_the_unit_that_fits() {
        let text = |milliseconds| duration(Duration::from_millis(milliseconds));
        assert_eq!(text(0), "< 1 ms");
        assert_eq!(text(112), "112 ms");
        assert_eq!(text(1_240), "1.2 s");
        assert_eq!(text(125_000), "2 min 5 s");
        assert_eq!(text(12_000_000), "3 h 20 min");
    }

    #[test]
    fn a_value_cannot_steer_the_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb\u{9b}"), "a\\x1b[2Jb\\x9b");
    }

    #[test]
    fn times_are_utc() {
        assert_eq!(time(Some(&Timestamp { seconds: 1_795_225_466, nanos: 5 })), "2026-11-21 01:44:26 UTC");
        assert_eq!(time(None), "");
    }
}
