//! What the gate says: every problem of a directory at once, each with its file, its line, and what to do.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::domain::tenant::TenantCode;

/// One reason why a directory is refused.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The entry's name as it is in the directory.
    pub file: String,
    /// From 1; `None` when the problem is the file as a whole.
    pub line: Option<usize>,
    /// What is wrong.
    pub what: String,
    /// What to do now.
    pub advice: &'static str,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A name may have any character but a slash, and each problem is one line.
        for character in self.file.chars() {
            match character {
                character if character.is_control() => write!(f, "{}", character.escape_default())?,
                character => write!(f, "{character}")?,
            }
        }
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        write!(f, ": {}; {}", self.what, self.advice)
    }
}

/// Why a directory was refused. No tenant has been touched.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    #[error(
        "the migration directory {} cannot be read: {cause}; check tenant_migrations_dir and the permissions", .path.display()
    )]
    Unreadable { path: PathBuf, cause: io::Error },
    #[error(
        "the migration directory {} has no migrations, but tenants have ({tenant} is at version {version}); is the volume mounted? Check tenant_migrations_dir", .path.display()
    )]
    Empty { path: PathBuf, tenant: TenantCode, version: i64 },
    #[error("{}", listed(.directory, .problems))]
    Refused {
        /// Where the files came from, as a person would say it.
        directory: String,
        /// Never empty; by file and line.
        problems: Vec<Problem>,
    },
}

impl GateError {
    /// Every problem, by file and line; none when the directory could not be read at all.
    pub fn problems(&self) -> &[Problem] {
        match self {
            Self::Unreadable { .. } | Self::Empty { .. } => &[],
            Self::Refused { problems, .. } => problems,
        }
    }
}

fn listed(directory: &str, problems: &[Problem]) -> String {
    let count = match problems.len() {
        1 => "1 problem".to_owned(),
        count => format!("{count} problems"),
    };
    let mut text = format!("{directory} has {count}, and no tenant was touched:");
    for problem in problems {
        text.push_str("\n  ");
        text.push_str(&problem.to_string());
    }
    text
}
