//! The process: parses the command line, makes the runtime, and ends with the command's exit code.

use std::process::ExitCode;

use mimalloc::MiMalloc;
use tenantd::cli;

/// A call is some dozens of small allocations, most of them freed by another thread's next call.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Of each thread, and only so much of it is memory as was ever used. What nests as deep as a tenant's types do is
/// bounded by this (`postgres/types.rs`).
const STACK_BYTES: usize = 16 << 20;

fn main() -> ExitCode {
    let command_line = match cli::parse(std::env::args_os()) {
        Ok(command_line) => command_line,
        Err(code) => return code.into(),
    };
    match tokio::runtime::Builder::new_multi_thread().thread_stack_size(STACK_BYTES).enable_all().build() {
        Ok(runtime) => runtime.block_on(cli::run(command_line)).into(),
        Err(error) => cli::fail(&error).into(),
    }
}
