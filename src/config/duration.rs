//! Times as people write them in the configuration.

use std::time::Duration;

use serde::Deserialize as _;

/// Nobody means more, and moments that are further away cannot be reckoned with everywhere.
const DURATION_MAX: Duration = Duration::from_hours(3_650 * 24);

/// As `30s`, `5m`, `500ms`.
pub(super) fn duration<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    let time = humantime::parse_duration(&text)
        .map_err(|error| serde::de::Error::custom(format!("{text:?} is no duration (as \"30s\"): {error}")))?;
    if time > DURATION_MAX {
        return Err(serde::de::Error::custom(format!("{text:?} is too long; at most 3650d")));
    }
    Ok(time)
}
