//! `make bench-router`: the router's figures side by side with what each is measured against, in one run on one
//! machine, as ratios.
//!
//! A private PostgreSQL cluster (without fsync: everything measured here reads), the daemon and the bare servers in
//! processes of their own, and one load generator, this process, for both sides. The two sides take turns in short
//! slices, so that whatever else the machine does meets both; a ratio is the median over the pairs of slices.
//! It measures and prints; nothing here fails because of a time.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a measurement that cannot go on says so")]
#![expect(clippy::disallowed_methods, reason = "starts tasks, daemons and poolers that no daemon knows of")]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it prints its table")]
#![expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "figures")]

mod bare;
mod callers;
mod fleet;
mod load;
mod pipeline;
mod pooler;
mod process;
mod report;
mod rows;
mod stage;
mod zipf;

use std::path::PathBuf;
use std::process::ExitCode;

use report::Report;
use stage::Stage;

/// What can be asked for, in the order in which it runs.
const ROWS: [&str; 8] = ["memory", "resolve", "execute", "stream", "cold", "noisy", "zipf-300", "zipf-1000"];

/// The command line: names of rows, `--keep DIR`.
struct Wish {
    rows: Vec<String>,
    /// A fleet that is kept in this folder between runs, or is found there.
    keep: Option<PathBuf>,
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let mut wish = Wish { rows: Vec::new(), keep: None };
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            bare::ARGUMENT => return bare::main(arguments),
            "--keep" => wish.keep = arguments.next().map(PathBuf::from),
            row if ROWS.iter().any(|known| known.starts_with(row)) => wish.rows.push(argument),
            other => {
                eprintln!("{other:?} is none of {}", ROWS.join(", "));
                return ExitCode::from(64);
            }
        }
    }
    if wish.rows.is_empty() {
        wish.rows = ROWS.map(str::to_owned).to_vec();
    }
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(async {
        tokio::select! {
            () = run(&wish) => ExitCode::SUCCESS,
            interrupted = tokio::signal::ctrl_c() => {
                interrupted.unwrap();
                eprintln!("stopped");
                ExitCode::from(130)
            }
        }
    })
}

async fn run(wish: &Wish) {
    // "zipf" means both.
    let is_wanted = |row: &str| wish.rows.iter().any(|wanted| row.starts_with(wanted.as_str()));
    let mut report = Report::default();
    let stage = Stage::start(wish.keep.clone()).await;
    report.machine(&stage).await;
    for row in ROWS.into_iter().filter(|row| is_wanted(row)) {
        match row {
            "memory" => rows::memory::run(&stage, &mut report).await,
            "resolve" => rows::resolve::run(&stage, &mut report).await,
            "execute" => rows::execute::run(&stage, &mut report).await,
            "stream" => rows::stream::run(&stage, &mut report).await,
            "cold" => rows::cold::run(&stage, &mut report).await,
            "noisy" => rows::noisy::run(&stage, &mut report).await,
            "zipf-300" => rows::zipf::run(&stage, &mut report, 300).await,
            _ => rows::zipf::run(&stage, &mut report, 1_000).await,
        }
    }
    report.print();
    stage.stop().await;
}
