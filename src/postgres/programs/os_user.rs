//! Users of the operating system, as far as running PostgreSQL needs them: it refuses to run as root, so root gives
//! its files to somebody who may own nothing else.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Stdio;

use super::child::command;

/// Whom root runs a cluster as; the first that exists.
const UNPRIVILEGED: [&str; 2] = ["postgres", "nobody"];

/// A user who is not the one that this process runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OsUser {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
}

impl OsUser {
    /// Whether this process may become somebody else.
    pub fn current_is_root() -> bool {
        Self::current_uid() == Some(0)
    }

    /// `None` where the system does not say.
    pub fn current_uid() -> Option<u32> {
        std::fs::metadata("/proc/self").map(|process| process.uid()).ok()
    }

    pub fn unprivileged() -> Option<Self> {
        let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        UNPRIVILEGED.iter().find_map(|name| parse(&users).find(|user| user.name == *name))
    }

    pub fn by_uid(uid: u32) -> Option<Self> {
        let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        parse(&users).find(|user| user.uid == uid)
    }

    /// Whether this user can get to the directory and write in it. The system is asked, because mode bits are not all
    /// that decides.
    pub async fn can_use(&self, dir: &Path) -> bool {
        let mut probe = command("/bin/sh");
        probe.args(["-c", "cd -- \"$1\" && test -w .", "sh"]).arg(dir).uid(self.uid).gid(self.gid);
        probe.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        probe.status().await.is_ok_and(|status| status.success())
    }
}

fn parse(users: &str) -> impl Iterator<Item = OsUser> {
    users.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?.to_owned();
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(OsUser { name, uid, gid })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_read_with_their_groups() {
        let users = "root:x:0:0:root:/root:/bin/bash\npostgres:x:101:104:,,,:/var/lib/postgresql:/bin/bash\nbroken\n";
        let postgres = OsUser { name: "postgres".to_owned(), uid: 101, gid: 104 };
        assert_eq!(parse(users).last(), Some(postgres));
        assert_eq!(parse(users).count(), 2);
    }
}
