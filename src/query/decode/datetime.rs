//! Dates, times and intervals as text, over PostgreSQL's whole range. Timestamps are ISO 8601 (those with a time zone
//! in UTC, with `Z`); years before Christ are written as PostgreSQL does, and read back by it.

use std::fmt::Write as _;

use super::Malformed;
use super::reader::Reader;

const MICROS_PER_SECOND: i64 = 1_000_000;
const MICROS_PER_DAY: i64 = 86_400 * MICROS_PER_SECOND;
/// Days from 0000-03-01 to 2000-01-01, PostgreSQL's epoch, in the proleptic Gregorian calendar.
const EPOCH_DAYS: i64 = 730_425;

pub(super) fn date(bytes: &[u8]) -> Result<String, Malformed> {
    let mut reader = Reader::new(bytes);
    let days = reader.i32()?;
    reader.end()?;
    Ok(match days {
        i32::MAX => "infinity".to_owned(),
        i32::MIN => "-infinity".to_owned(),
        days => {
            let (date, era) = date_text(i64::from(days));
            format!("{date}{era}")
        }
    })
}

pub(super) fn time(bytes: &[u8]) -> Result<String, Malformed> {
    let mut reader = Reader::new(bytes);
    let micros = reader.i64()?;
    reader.end()?;
    Ok(time_text(micros))
}

pub(super) fn time_with_zone(bytes: &[u8]) -> Result<String, Malformed> {
    let mut reader = Reader::new(bytes);
    let (micros, seconds_west) = (reader.i64()?, reader.i32()?);
    reader.end()?;
    let sign = if seconds_west > 0 { '-' } else { '+' };
    let seconds = seconds_west.unsigned_abs();
    let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let mut text = format!("{}{sign}{hours:02}:{minutes:02}", time_text(micros));
    if rest != 0 {
        let _infallible = write!(text, ":{rest:02}");
    }
    Ok(text)
}

/// `zone` is appended to the time: `Z` or nothing.
pub(super) fn timestamp(bytes: &[u8], zone: &str) -> Result<String, Malformed> {
    let mut reader = Reader::new(bytes);
    let micros = reader.i64()?;
    reader.end()?;
    Ok(match micros {
        i64::MAX => "infinity".to_owned(),
        i64::MIN => "-infinity".to_owned(),
        micros => {
            let (date, era) = date_text(micros.div_euclid(MICROS_PER_DAY));
            let time = time_text(micros.rem_euclid(MICROS_PER_DAY));
            format!("{date}T{time}{zone}{era}")
        }
    })
}

/// As PostgreSQL writes it with `IntervalStyle = postgres`: `1 year 2 mons -3 days +04:05:06.789`.
pub(super) fn interval(bytes: &[u8]) -> Result<String, Malformed> {
    let mut reader = Reader::new(bytes);
    let (micros, days, months) = (reader.i64()?, reader.i32()?, reader.i32()?);
    reader.end()?;
    match (micros, days, months) {
        (i64::MAX, i32::MAX, i32::MAX) => return Ok("infinity".to_owned()),
        (i64::MIN, i32::MIN, i32::MIN) => return Ok("-infinity".to_owned()),
        _finite => {}
    }
    let mut text = String::new();
    let mut negative_before = false;
    for (count, unit) in [(months / 12, "year"), (months % 12, "mon"), (days, "day")] {
        if count == 0 {
            continue;
        }
        let space = if text.is_empty() { "" } else { " " };
        let plus = if negative_before && count > 0 { "+" } else { "" };
        let plural = if count == 1 { "" } else { "s" };
        let _infallible = write!(text, "{space}{plus}{count} {unit}{plural}");
        negative_before = count < 0;
    }
    if micros != 0 || text.is_empty() {
        let space = if text.is_empty() { "" } else { " " };
        let sign = match (micros < 0, negative_before) {
            (true, _) => "-",
            (false, true) => "+",
            (false, false) => "",
        };
        let _infallible = write!(text, "{space}{sign}{}", time_text_unsigned(micros.unsigned_abs()));
    }
    Ok(text)
}

fn time_text(micros: i64) -> String {
    time_text_unsigned(micros.unsigned_abs())
}

/// `04:05:06`, and the fraction without trailing zeros when there is one.
fn time_text_unsigned(micros: u64) -> String {
    let per_second = MICROS_PER_SECOND.unsigned_abs();
    let (seconds, fraction) = (micros / per_second, micros % per_second);
    let mut text = format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    if fraction != 0 {
        text.push_str(format!(".{fraction:06}").trim_end_matches('0'));
    }
    text
}

/// The date, and ` BC` for years before the first.
fn date_text(days_since_2000: i64) -> (String, &'static str) {
    let (year, month, day) = civil(days_since_2000);
    let (year, era) = if year > 0 { (year, "") } else { (1 - year, " BC") };
    (format!("{year:04}-{month:02}-{day:02}"), era)
}

/// Year, month and day of the proleptic Gregorian calendar; the year before 1 is 0. The calendar repeats every 400
/// years, and a year that begins in March has its leap day at the end
/// (<https://howardhinnant.github.io/date_algorithms.html>).
fn civil(days_since_2000: i64) -> (i64, i64, i64) {
    const DAYS_PER_ERA: i64 = 146_097;
    let days = days_since_2000 + EPOCH_DAYS;
    let (era, day_of_era) = (days.div_euclid(DAYS_PER_ERA), days.rem_euclid(DAYS_PER_ERA));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_cover_the_whole_range() {
        let of = |days: i32| date(&days.to_be_bytes()).unwrap();
        assert_eq!(of(0), "2000-01-01");
        assert_eq!(of(59), "2000-02-29");
        assert_eq!(of(-10_957), "1970-01-01");
        assert_eq!(of(-730_119), "0001-01-01");
        assert_eq!(of(-730_120), "0001-12-31 BC");
        assert_eq!(of(i32::MAX), "infinity");
        assert_eq!(of(i32::MIN), "-infinity");
    }

    #[test]
    fn timestamps_are_iso_8601() {
        let of = |micros: i64| timestamp(&micros.to_be_bytes(), "Z").unwrap();
        assert_eq!(of(0), "2000-01-01T00:00:00Z");
        assert_eq!(of(-1), "1999-12-31T23:59:59.999999Z");
        assert_eq!(of(1_500_000), "2000-01-01T00:00:01.5Z");
    }

    #[test]
    fn intervals_read_as_postgresql_writes_them() {
        let of = |micros: i64, days: i32, months: i32| {
            let bytes: Vec<u8> =
                micros.to_be_bytes().into_iter().chain(days.to_be_bytes()).chain(months.to_be_bytes()).collect();
            interval(&bytes).unwrap()
        };
        assert_eq!(of(0, 0, 0), "00:00:00");
        assert_eq!(of(0, 1, 0), "1 day");
        assert_eq!(of(14_706_789_000, -3, 14), "1 year 2 mons -3 days +04:05:06.789");
        assert_eq!(of(-1_000_000, 0, -13), "-1 years -1 mons -00:00:01");
    }
}
