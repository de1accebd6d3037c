//! How statements ended, by the server's own log: that a session is gone does not say whether its statement was
//! cancelled, because a server that looks after its client by itself ends the statements of those who are not there.

use std::path::PathBuf;

use crate::harness::{Fleet, until};

/// What the server writes of a statement or a session that it ends before its time.
const ENDS: [&str; 5] = [
    "canceling statement due to ",
    "terminating connection due to ",
    "connection to client lost",
    "could not send data to client",
    "unexpected EOF on client connection",
];

/// What was ended in the database of the tenant `acme` so far, and in whose session, by its process id.
pub fn ends(fleet: &Fleet) -> Vec<(i32, String)> {
    let dir = fleet.machine.dir.join("cluster");
    // A cluster of root's is not always below its own folder.
    let place = std::fs::read_to_string(dir.join("cluster-location"));
    let place = place.map_or_else(|_| dir.join("cluster"), |told| PathBuf::from(told.trim()));
    let log = std::fs::read(place.join("log")).unwrap();
    let database = format!(" {} ", database(fleet));
    let end = |line: &str| {
        let at = ENDS.iter().find_map(|end| line.find(end)).filter(|_| line.contains(&database))?;
        // `time [pid] application database …`
        let pid = line.split_once('[')?.1.split_once(']')?.0.parse().ok()?;
        Some((pid, line[at..].to_owned()))
    };
    String::from_utf8_lossy(&log).lines().filter_map(end).collect()
}

fn database(fleet: &Fleet) -> String {
    format!("{}_acme", fleet.naming.prefix())
}

/// Sessions that run a statement.
pub struct Running<'a> {
    fleet: &'a Fleet,
    pids: Vec<i32>,
}

impl<'a> Running<'a> {
    /// Awaits that so many sessions of the tenant `acme` run a statement with this in it.
    pub async fn find(fleet: &'a Fleet, part: &str, count: usize) -> Self {
        let judge = fleet.judge("postgres").await;
        let sql = "SELECT pid FROM pg_stat_activity
            WHERE datname = $1 AND backend_type = 'client backend' AND state = 'active' AND strpos(query, $2) > 0";
        let pids = until(&format!("{count} sessions run {part}"), async || {
            let rows = judge.query(sql, &[&database(fleet), &part]).await.unwrap();
            (rows.len() == count).then(|| rows.iter().map(|row| row.get(0)).collect())
        })
        .await;
        Self { fleet, pids }
    }

    /// Awaits that the server was asked to cancel each of the statements, and that nothing else has ended them.
    pub async fn cancelled(&self) {
        let ends = until("the server has written how the statements ended", async || {
            let ends = ends(self.fleet);
            self.pids.iter().all(|pid| ends.iter().any(|(ended, _)| ended == pid)).then_some(ends)
        })
        .await;
        let own: Vec<_> = ends.iter().filter(|(pid, _)| self.pids.contains(pid)).collect();
        assert!(own.iter().all(|(_, how)| how == "canceling statement due to user request"), "{own:?}");
    }
}
