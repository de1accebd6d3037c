//! How many files the process may have open: each caller and each session with a server is one.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Fewer are too few for a fleet.
const ENOUGH: u64 = 1_024;

/// Takes as many as the process is allowed to take; what it is given at first is often 1,024.
pub(super) fn raise() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
    {
        tracing::warn!(%error, "the limit of open files cannot be raised");
    }
    if let Some(files) = getrlimit(Resource::Nofile).current.filter(|files| *files < ENOUGH) {
        tracing::warn!(
            files,
            "the process may have few files open, and half of them are its callers'; raise its limit (LimitNOFILE, ulimit -n)"
        );
    }
}
