//! Finding every problem of a configuration's form in one reading: a value that does not fit is noted, replaced by a
//! stand-in, and the reading begins again. What was mended is only looked at for further problems, never used.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use serde_path_to_error::{Path, Segment};

/// In the place of a text that is missing.
pub(super) const STAND_IN: &str = "-";
/// More than any file has settings.
const PROBLEMS_MAX: usize = 100;

/// Reads `value`; every misfit goes to `problems`, with the path of its setting.
pub(super) fn read<T: DeserializeOwned>(mut value: Value, problems: &mut Vec<Problem>) -> Option<T> {
    for _ in 0..PROBLEMS_MAX {
        let error = match serde_path_to_error::deserialize::<_, T>(&value) {
            Ok(read) => return Some(read),
            Err(error) => error,
        };
        let (path, misfit) = (error.path().clone(), Misfit::of(&error.inner().to_string()));
        let at = misfit.path(&path);
        if !problems.iter().any(|known| known.path == at) {
            // The reader quotes what it found, and that may be a secret of the wrong form.
            let text = if at.contains("secret") { misfit.text_without_value() } else { misfit.text() };
            problems.push(Problem { path: at, text });
        }
        if !misfit.mend(&mut value, &path) {
            return None;
        }
    }
    None
}

/// One setting that cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) path: String,
    pub(super) text: String,
}

/// What is wrong with a setting.
enum Misfit {
    Missing(String),
    Unknown { name: String, text: String },
    Unusable(String),
}

impl Misfit {
    fn of(message: &str) -> Self {
        let name = |text: &str| text.split('`').nth(1).unwrap_or_default().to_owned();
        if message.starts_with("missing field") {
            Self::Missing(name(message))
        } else if message.starts_with("unknown field") {
            Self::Unknown { name: name(message), text: message.to_owned() }
        } else {
            Self::Unusable(message.to_owned())
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Missing(_) => "is missing".to_owned(),
            Self::Unknown { text, .. } | Self::Unusable(text) => text.clone(),
        }
    }

    fn text_without_value(&self) -> String {
        match self {
            Self::Unusable(_) => "is not of the expected form".to_owned(),
            Self::Missing(_) | Self::Unknown { .. } => self.text(),
        }
    }

    /// The setting's own path; the reader names the table that misses it, or has it too much.
    fn path(&self, path: &Path) -> String {
        let mut names: Vec<String> = path.iter().map(ToString::to_string).collect();
        if let Self::Missing(name) | Self::Unknown { name, .. } = self
            && names.last() != Some(name)
        {
            names.push(name.clone());
        }
        names.retain(|name| name != "?");
        names.join(".")
    }

    /// Puts something readable in the setting's place.
    fn mend(&self, value: &mut Value, path: &Path) -> bool {
        let mut segments: Vec<&Segment> = path.iter().collect();
        let (key, stand_in) = match self {
            Self::Missing(name) => (name.clone(), Some(stand_in(name))),
            Self::Unknown { name, .. } => {
                if segments.last().is_some_and(|last| last.to_string() == *name) {
                    segments.pop();
                }
                (name.clone(), None)
            }
            Self::Unusable(_) => match segments.pop() {
                Some(last) => (last.to_string(), None),
                None => return false,
            },
        };
        let Some(table) = table_at(value, &segments) else { return false };
        match stand_in {
            Some(stand_in) => table.insert(key, stand_in).is_none(),
            // Gone, its default takes its place, or it is missing, which is known by then.
            None => table.remove(&key).is_some(),
        }
    }
}

fn table_at<'a>(value: &'a mut Value, segments: &[&Segment]) -> Option<&'a mut Map<String, Value>> {
    let mut at = value;
    for segment in segments {
        at = match segment {
            Segment::Map { key } => at.get_mut(key)?,
            Segment::Seq { index } => at.get_mut(*index)?,
            Segment::Enum { .. } | Segment::Unknown => return None,
        };
    }
    at.as_object_mut()
}

fn stand_in(name: &str) -> Value {
    match name {
        "servers" => json!([]),
        "store" => json!({ "bucket": STAND_IN, "access_key_id": STAND_IN, "secret_access_key": STAND_IN }),
        _ => json!(STAND_IN),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only read")]
    struct File {
        prefix: String,
        #[serde(default)]
        port: u16,
        servers: Vec<Server>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only read")]
    struct Server {
        name: String,
        host: String,
    }

    #[test]
    fn a_secret_of_the_wrong_form_is_not_quoted() {
        #[derive(Debug, Deserialize)]
        #[expect(dead_code, reason = "only read")]
        struct Secret {
            secret_access_key: String,
        }
        let mut problems = Vec::new();
        read::<Secret>(json!({ "secret_access_key": 12345 }), &mut problems);
        assert_eq!(problems[0].text, "is not of the expected form");
    }

    #[test]
    fn every_misfit_is_found_at_once_and_once() {
        let mut problems = Vec::new();
        let value = json!({ "port": "many", "colour": 1, "servers": [{ "name": 5, "hots": "x" }] });
        assert!(read::<File>(value, &mut problems).is_some());
        let mut paths: Vec<_> = problems.iter().map(|problem| problem.path.as_str()).collect();
        paths.sort_unstable();
        assert_eq!(paths, ["colour", "port", "prefix", "servers.[0].host", "servers.[0].hots", "servers.[0].name"]);
    }
}
