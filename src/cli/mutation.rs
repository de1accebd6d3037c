//! What every change has in common on the command line.

use uuid::Uuid;

/// Flags of a command that changes something.
#[derive(Debug, Clone, clap::Args)]
pub struct Mutation {
    /// The idempotency key: the same id with the same request never acts twice.
    #[arg(long, value_name = "UUID")]
    request_id: Option<Uuid>,
    /// Check everything and change nothing.
    #[arg(long)]
    pub validate_only: bool,
}

/// Whether a command waits for the operation that it began.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Wait {
    /// Print the operation and return, without waiting for its end.
    #[arg(long)]
    pub no_wait: bool,
}

impl Mutation {
    /// The id that was given, or a new one.
    pub fn request_id(&self) -> String {
        self.request_id.unwrap_or_else(Uuid::now_v7).to_string()
    }
}
