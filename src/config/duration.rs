//! Times as people write them in the configuration.

use std::time::Duration;

use serde::Deserialize as _;

/// As `30s`, `5m`, `500ms`.
pub(super) fn duration<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text)
        .map_err(|error| serde::de::Error::custom(format!("{text:?} is no duration (as \"30s\"): {error}")))
}
