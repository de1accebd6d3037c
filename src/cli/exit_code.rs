//! What the process ends with: a contract with scripts. Codes from 64 on are those of BSD's sysexits.

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitCode {
    Done,
    /// The daemon could not do it, or the operation failed and was undone.
    Failed,
    /// migrate-all: some tenants failed, within the failure budget.
    Partial,
    /// migrate-all: the failure budget was used up.
    Halted,
    /// The command line, the client file, or a value in the request.
    Usage,
    /// The daemon does not answer, or cannot for the moment.
    Unavailable,
    /// The key is missing, unknown, or may not do this.
    Denied,
    /// Ctrl-C while waiting; what was begun goes on in the daemon.
    Interrupted,
}

/// The contract, for `--help`.
pub const HELP: &str = "\
Exit codes:
    0  done
    1  failed
    2  partial: some tenants failed, within --max-failures (migrate-all)
    3  halted: more tenants failed than --max-failures (migrate-all)
   64  the command line, the configuration or a value in it is not usable
   69  the daemon does not answer, or cannot for the moment
   77  the key is unknown or may not do this
  130  interrupted while waiting; what was begun goes on in the daemon";

impl ExitCode {
    pub fn number(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Partial => 2,
            Self::Halted => 3,
            Self::Usage => 64,
            Self::Unavailable => 69,
            Self::Denied => 77,
            Self::Interrupted => 130,
        }
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code.number())
    }
}
