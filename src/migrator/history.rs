//! The history table, as refinery with `int8-versions` keeps it: `public.refinery_schema_history`. Reading it is one
//! simple message; a table that is not there is an empty history.

use refinery_core::Migration;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, SimpleQueryMessage, SimpleQueryRow};

use super::error::Cause;
use super::files_hash::FilesHash;

/// Qualified, so that no `search_path` can lead elsewhere.
pub(super) const TABLE: &str = "public.refinery_schema_history";
pub(super) const READ: &str =
    "SELECT version, name, applied_on, checksum FROM public.refinery_schema_history ORDER BY version";

/// One applied migration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    pub version: i64,
    pub name: String,
    /// By the clock of the runner that applied it.
    pub applied_on: OffsetDateTime,
    /// refinery's: SipHash-1-3 of name, version and text.
    pub checksum: u64,
}

/// What has been applied, by version. Takes no lock, writes nothing, and needs no table.
pub async fn history_read(client: &Client) -> Result<Vec<Applied>, Cause> {
    let messages = match client.simple_query(READ).await {
        Ok(messages) => messages,
        Err(error) if is_table_missing(&error) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    messages
        .iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(Applied::from_row(row)),
            _ => None,
        })
        .collect()
}

/// A database's history in brief.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    /// The newest version; 0 for none.
    pub version: i64,
    /// As [`super::FilesHashes`] makes it.
    pub files_hash: String,
}

/// As [`history_read`].
pub async fn history_look(client: &Client) -> Result<History, Cause> {
    let applied = history_read(client).await?;
    let version = applied.last().map_or(0, |applied| applied.version);
    Ok(History { version, files_hash: files_hash(&applied).value() })
}

pub(super) fn files_hash(history: &[Applied]) -> FilesHash {
    let mut hash = FilesHash::default();
    for applied in history {
        hash.add(applied.version, &applied.name, applied.checksum);
    }
    hash
}

pub(super) fn is_table_missing(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&SqlState::UNDEFINED_TABLE)
}

impl Applied {
    pub(super) fn from_row(row: &SimpleQueryRow) -> Result<Self, Cause> {
        let text = |column: usize| row.try_get(column).ok().flatten().unwrap_or_default();
        let unreadable = |column: &str| Cause::History {
            reason: format!("the row of version {} has no readable {column}", text(0)),
        };
        Ok(Self {
            version: text(0).parse().map_err(|_| unreadable("version"))?,
            name: text(1).to_owned(),
            applied_on: OffsetDateTime::parse(text(2), &Rfc3339).map_err(|_| unreadable("applied_on"))?,
            checksum: text(3).parse().map_err(|_| unreadable("checksum"))?,
        })
    }

    pub(super) fn into_migration(self) -> Migration {
        Migration::applied(self.version, self.name, self.applied_on, self.checksum)
    }
}
