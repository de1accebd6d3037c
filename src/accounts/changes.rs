//! Hearing of changes of somebody's rights, whoever made them: triggers in the auth database announce each.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_postgres::Notification;
use uuid::Uuid;

use super::Accounts;
use super::errors::Error;
use crate::postgres::{ConnectRequest, Connection, Lane, SessionOptions};

/// As the triggers name it.
const CHANNEL: &str = "tenantd_access";
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// Whose rights have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Key(Uuid),
    /// By its `jti`.
    Token(Uuid),
    User(Uuid),
    /// Anybody's.
    All,
}

/// What is announced from now on. It has a session of its own.
#[derive(Debug)]
pub struct Changes {
    _connection: Connection,
    notifications: mpsc::Receiver<Notification>,
}

impl Accounts {
    /// Listens. What changed before this answers has to be read.
    pub async fn changes(&self) -> Result<Changes, Error> {
        let request = ConnectRequest {
            lane: Lane::Catalog,
            login: self.server.daemon(),
            database: &self.database,
            application_name: &self.server.session_name("accounts changes"),
            options: SessionOptions::default(),
            deadline: Instant::now() + CONNECT_MAX,
        };
        let mut connection = self.server.connect(&request).await?;
        let notifications = connection.notifications().unwrap_or_else(|| mpsc::channel(1).1);
        connection.batch_execute(&format!("LISTEN {CHANNEL}")).await?;
        Ok(Changes { _connection: connection, notifications })
    }
}

impl Changes {
    /// The next one; `None` when the session has ended.
    pub async fn next(&mut self) -> Option<Change> {
        self.notifications.recv().await.map(|notification| change(notification.payload()))
    }
}

/// What is not understood may be about anybody.
fn change(payload: &str) -> Change {
    let Some((kind, id)) = payload.split_once(' ') else { return Change::All };
    match (kind, id.parse()) {
        ("key", Ok(id)) => Change::Key(id),
        ("token", Ok(id)) => Change::Token(id),
        ("user", Ok(id)) => Change::User(id),
        _ => Change::All,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_understood_is_about_everybody() {
        let id = Uuid::nil();
        assert_eq!(change(&format!("key {id}")), Change::Key(id));
        assert_eq!(change(&format!("token {id}")), Change::Token(id));
        assert_eq!(change(&format!("user {id}")), Change::User(id));
        for payload in ["", "key", "key x", "all 1", "role 00000000-0000-0000-0000-000000000000"] {
            assert_eq!(change(payload), Change::All, "{payload}");
        }
    }
}
