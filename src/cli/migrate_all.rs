//! `tenantd migrate-all`: the fleet to the newest version, as a job for CI. Its exit code tells how it went.

use std::collections::BTreeMap;

use super::connection::{Connection, request};
use super::error::Error;
use super::exit_code::ExitCode;
use super::mutation::{Mutation, Wait};
use super::output::Output;
use super::pages;
use super::progress::Progress;
use super::table::{Column, list};
use super::wait::{self, Reconnect};
use super::{Context, human};
use crate::proto::v1::{
    CreateRolloutRequest, CreateRolloutResponse, GetRolloutRequest, GetRolloutResponse, Rollout, RolloutState,
    RolloutTarget, RolloutTargetState, WatchRolloutRequest, WatchRolloutResponse,
};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit codes: 0 every tenant is at the target version, 2 some tenants failed within --max-failures,
3 halted because more failed, 64 the migration directory or the command line is not usable; 1 the rollout is
stuck, or could not be driven to its end.

With --output jsonl there is one line for each tenant when it has ended, and the rollout as the last line.")]
pub struct Arguments {
    /// How many tenants may fail before no further one is begun; 0 halts at the first.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(i32).range(0..))]
    max_failures: i32,
    /// Ask every database for its version, instead of trusting the catalog.
    #[arg(long)]
    verify: bool,
    /// Pause each tenant while it is migrated: its callers wait, and its direct clients are locked out.
    #[arg(long)]
    pause: bool,
    /// Only this tenant (id or code); may be repeated.
    #[arg(long = "tenant", value_name = "TENANT")]
    tenants: Vec<String>,
    #[command(flatten)]
    mutation: Mutation,
    #[command(flatten)]
    wait: Wait,
}

pub async fn run(arguments: Arguments, context: &Context) -> Result<ExitCode, Error> {
    let connection = context.connect().await?;
    let validate_only = arguments.mutation.validate_only;
    let message = CreateRolloutRequest {
        request_id: arguments.mutation.request_id(),
        validate_only,
        max_failures: arguments.max_failures,
        tenants: arguments.tenants,
        verify: arguments.verify,
        pause: arguments.pause,
    };
    let answer = connection.migrations().create_rollout(request(message)).await?.into_inner();
    if validate_only {
        context.output.answer(&answer, || "The migration directory is in order; nothing was changed.\n".to_owned())?;
        return Ok(ExitCode::Done);
    }
    let begun = answer.rollout.ok_or(Error::Incomplete("rollout"))?;
    if arguments.wait.no_wait {
        let answer = CreateRolloutResponse { rollout: Some(begun.clone()) };
        context.output.answer(&answer, || begun_text(&context.program, &begun.rollout_id))?;
        return Ok(ExitCode::Done);
    }
    let id = begun.rollout_id.clone();
    let mut view = View::new(context.output, &begun);
    tokio::select! {
        ended = follow(&connection, &id, &mut view) => ended?,
        _ = tokio::signal::ctrl_c() => return Err(Error::Interrupted { program: context.program.clone(), id }),
    }
    view.finish();
    report(context, rollout_get(&connection, id).await?)
}

/// Watches until the rollout has ended, and begins again when the stream breaks.
async fn follow(connection: &Connection, id: &str, view: &mut View) -> Result<(), Error> {
    let mut reconnect = Reconnect::default();
    while view.state == RolloutState::Running {
        let request = WatchRolloutRequest { rollout_id: id.to_owned() };
        let broken = match connection.migrations().watch_rollout(request).await {
            Ok(stream) => {
                let show =
                    |update: WatchRolloutResponse| view.show(&update.rollout.ok_or(Error::Incomplete("rollout"))?);
                wait::read(stream.into_inner(), &mut reconnect, show).await?
            }
            Err(status) => Some(status),
        };
        if view.state == RolloutState::Running {
            reconnect.pause(broken, |text| view.progress.line(text)).await?;
        }
    }
    Ok(())
}

/// The rollout with all of its targets.
async fn rollout_get(connection: &Connection, rollout_id: String) -> Result<Rollout, Error> {
    let mut rollout = Rollout::default();
    let page = async |page_size, page_token| {
        let message = GetRolloutRequest { rollout_id: rollout_id.clone(), page_size, page_token };
        let answer = connection.migrations().get_rollout(request(message)).await?.into_inner();
        rollout = answer.rollout.ok_or(Error::Incomplete("rollout"))?;
        Ok((std::mem::take(&mut rollout.targets), answer.next_page_token))
    };
    let (targets, _none_left) = pages::collect(usize::MAX, page).await?;
    Ok(Rollout { targets, ..rollout })
}

/// What was shown of a rollout so far.
struct View {
    output: Output,
    progress: Progress,
    state: RolloutState,
    /// The state in which each tenant was last seen.
    seen: BTreeMap<String, RolloutTargetState>,
}

impl View {
    fn new(output: Output, rollout: &Rollout) -> Self {
        output.note(&format!("migrate-all to version {} (rollout {})", rollout.target_version, rollout.rollout_id));
        Self { output, progress: Progress::new(output), state: RolloutState::Running, seen: BTreeMap::new() }
    }

    /// Takes the bar away, and leaves a line between the tenants and the report.
    fn finish(self) {
        drop(self.progress);
        self.output.note("");
    }

    fn show(&mut self, rollout: &Rollout) -> Result<(), Error> {
        self.state = rollout.state();
        let mut now = "";
        for target in &rollout.targets {
            let state = target.state();
            if state == RolloutTargetState::Running {
                now = &target.code;
            }
            if self.seen.insert(target.tenant_id.clone(), state) == Some(state) {
                continue;
            }
            if has_ended(state) {
                self.output.event(target)?;
            }
            if let Some(line) = target_line(target) {
                self.progress.line(&line);
            }
        }
        let done = self.seen.values().filter(|state| has_ended(**state)).count();
        self.progress.at(done, self.seen.len(), now);
        Ok(())
    }
}

fn has_ended(state: RolloutTargetState) -> bool {
    !matches!(state, RolloutTargetState::Pending | RolloutTargetState::Running | RolloutTargetState::Unspecified)
}

/// What there is to say when a tenant has come to this state.
fn target_line(target: &RolloutTarget) -> Option<String> {
    let (code, took) = (&target.code, human::elapsed(target.start_time.as_ref(), target.end_time.as_ref()));
    match target.state() {
        RolloutTargetState::Migrated => {
            Some(format!("  ✓ {code:<24} {took:>10}  {} → {}", target.from_version, target.to_version))
        }
        RolloutTargetState::Failed => Some(format!("  ✗ {code:<24} {took:>10}  {}", failure(target))),
        _ => None,
    }
}

fn failure(target: &RolloutTarget) -> String {
    let error = human::printable(&target.error);
    // Most messages of PostgreSQL's have it already.
    if error.contains(&target.sqlstate) { error } else { format!("{error} ({})", target.sqlstate) }
}

/// Prints how it ended.
fn report(context: &Context, rollout: Rollout) -> Result<ExitCode, Error> {
    let output = context.output;
    let code = match rollout.state() {
        RolloutState::Succeeded => ExitCode::Done,
        RolloutState::Partial => ExitCode::Partial,
        RolloutState::Halted => ExitCode::Halted,
        RolloutState::Failed | RolloutState::Stuck | RolloutState::Running | RolloutState::Unspecified => {
            ExitCode::Failed
        }
    };
    let text = || report_text(&context.program, &rollout);
    if output.format() == super::Format::Jsonl {
        output.event(&Rollout { targets: Vec::new(), ..rollout })?;
    } else {
        output.answer(&GetRolloutResponse { rollout: Some(rollout.clone()), ..GetRolloutResponse::default() }, text)?;
    }
    Ok(code)
}

fn begun_text(program: &str, rollout_id: &str) -> String {
    format!("Rollout {rollout_id} has begun.\n\nFollow it: {program} operation watch {rollout_id}\n")
}

fn report_text(program: &str, rollout: &Rollout) -> String {
    let counts = rollout.counts.unwrap_or_default();
    let version = rollout.target_version;
    if rollout.state() == RolloutState::Succeeded && counts.migrated + counts.ahead + counts.skipped == 0 {
        return match rollout.targets.len() {
            1 => format!("Nothing to do: the tenant is at version {version}.\n"),
            count => format!("Nothing to do: all {count} tenants are at version {version}.\n"),
        };
    }
    let changed = |target: &&RolloutTarget| target.state() != RolloutTargetState::Current;
    let columns = [
        Column::Text("TENANT"),
        Column::State("STATE"),
        Column::Number("FROM"),
        Column::Number("TO"),
        Column::Number("APPLIED"),
        Column::Number("TOOK"),
        Column::Text("ERROR"),
    ];
    let table = list(&columns, rollout.targets.iter().filter(changed).map(row));
    let took = human::elapsed(rollout.create_time.as_ref(), rollout.end_time.as_ref());
    let took = if took.is_empty() { took } else { format!(" in {took}") };
    let error = match (rollout.state(), rollout.error.as_str()) {
        (RolloutState::Stuck, _) => format!("\nWhy, and what helps: {program} operation show {}", rollout.rollout_id),
        (_, "") => String::new(),
        (_, error) => format!("\n{}", human::printable(error)),
    };
    let state = human::state(rollout.state().as_str_name(), "ROLLOUT_STATE_");
    format!("{table}\n{state}{took}: version {version}, {}.{error}\n", counted(&counts))
}

fn row(target: &RolloutTarget) -> Vec<String> {
    vec![
        target.code.clone(),
        human::state(target.state().as_str_name(), "ROLLOUT_TARGET_STATE_"),
        target.from_version.to_string(),
        target.to_version.to_string(),
        target.applied.to_string(),
        human::elapsed(target.start_time.as_ref(), target.end_time.as_ref()),
        failure(target),
    ]
}

fn counted(counts: &crate::proto::v1::RolloutCounts) -> String {
    let parts = [
        (counts.migrated, "migrated"),
        (counts.failed, "failed"),
        (counts.skipped, "not begun"),
        (counts.pending, "pending"),
        (counts.ahead, "ahead of the directory"),
        (counts.current, "up to date before"),
    ];
    let parts = parts.iter().filter(|(count, _)| *count > 0);
    parts.map(|(count, what)| format!("{} {what}", human::count(i64::from(*count)))).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::v1::RolloutCounts;

    fn target(code: &str, state: RolloutTargetState, error: &str) -> RolloutTarget {
        let failed = state == RolloutTargetState::Failed;
        RolloutTarget {
            tenant_id: code.to_owned(),
            code: code.to_owned(),
            state: state.into(),
            from_version: 3,
            to_version: if failed { 3 } else { 4 },
            applied: i32::from(!failed),
            error: error.to_owned(),
            sqlstate: if failed { "42P01".to_owned() } else { String::new() },
            ..RolloutTarget::default()
        }
    }

    #[test]
    fn the_report_names_who_failed_and_why() {
        let rollout = Rollout {
            state: RolloutState::Partial.into(),
            target_version: 4,
            counts: Some(RolloutCounts { migrated: 1, failed: 1, current: 1, ..RolloutCounts::default() }),
            targets: vec![
                target("acme", RolloutTargetState::Migrated, ""),
                target("globex", RolloutTargetState::Failed, "V4__x.sql: relation \"y\" does not exist"),
                target("initech", RolloutTargetState::Current, ""),
            ],
            ..Rollout::default()
        };
        insta::assert_snapshot!(report_text("tenantd", &rollout), @r#"
        TENANT  STATE     FROM  TO  APPLIED  TOOK  ERROR
        acme    MIGRATED     3   4        1     -  -
        globex  FAILED       3   3        0     -  V4__x.sql: relation "y" does not exist (42P01)

        PARTIAL: version 4, 1 migrated, 1 failed, 1 up to date before.
        "#);
    }

    #[test]
    fn a_stuck_rollout_says_where_to_look() {
        let rollout = Rollout {
            rollout_id: "0197".to_owned(),
            state: RolloutState::Stuck.into(),
            target_version: 4,
            counts: Some(RolloutCounts { pending: 1, ..RolloutCounts::default() }),
            targets: vec![target("acme", RolloutTargetState::Running, "")],
            ..Rollout::default()
        };
        let text = report_text("tenantd", &rollout);
        assert!(
            text.ends_with("STUCK: version 4, 1 pending.\nWhy, and what helps: tenantd operation show 0197\n"),
            "{text}"
        );
    }

    #[test]
    fn a_second_run_has_nothing_to_do() {
        let rollout = Rollout {
            state: RolloutState::Succeeded.into(),
            target_version: 4,
            counts: Some(RolloutCounts { current: 1, ..RolloutCounts::default() }),
            targets: vec![target("acme", RolloutTargetState::Current, "")],
            ..Rollout::default()
        };
        assert_eq!(report_text("tenantd", &rollout), "Nothing to do: the tenant is at version 4.\n");
    }
}
