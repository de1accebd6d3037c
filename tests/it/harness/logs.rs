//! What the daemons log, charged to the test that started them: each runs in a root span `daemon{fleet}`, and a line
//! below it is that fleet's. A WARN or ERROR that a test did not declare fails it.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id};
use tracing::{Event, Level, Span, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Lines that are shown when a test fails.
const LINES_KEPT_MAX: usize = 200;
/// Lines outside of every daemon's span: somebody spawned a task past `shutdown::Tasks`.
const NOBODY: &str = "";

#[derive(Debug, Default)]
struct Lines {
    /// WARN and ERROR.
    problems: Vec<String>,
    /// The latest, whatever their level.
    latest: VecDeque<String>,
}

static LINES: Mutex<BTreeMap<String, Lines>> = Mutex::new(BTreeMap::new());

fn lines() -> MutexGuard<'static, BTreeMap<String, Lines>> {
    LINES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The root span of a daemon of this fleet.
pub fn root_span(fleet: &str) -> Span {
    static CAPTURE: OnceLock<()> = OnceLock::new();
    CAPTURE.get_or_init(|| tracing_subscriber::registry().with(Capture.with_filter(LevelFilter::INFO)).init());
    tracing::info_span!(parent: None, "daemon", fleet)
}

/// Notes a line, as the capture does, for a daemon in a process of its own.
pub fn note(fleet: &str, is_problem: bool, line: String) {
    let mut all = lines();
    let of_fleet = all.entry(fleet.to_owned()).or_default();
    if is_problem {
        of_fleet.problems.push(line.clone());
    }
    of_fleet.latest.push_back(line);
    if of_fleet.latest.len() > LINES_KEPT_MAX {
        of_fleet.latest.pop_front();
    }
}

/// The fleet's WARN and ERROR lines so far, with those of the daemon's rooms that no span holds.
pub fn problems(fleet: &str) -> Vec<String> {
    let all = lines();
    [fleet, NOBODY].iter().filter_map(|name| all.get(*name)).flat_map(|lines| lines.problems.clone()).collect()
}

/// What to show beside a failure.
pub fn latest(fleet: &str) -> String {
    lines().get(fleet).map_or_else(String::new, |lines| lines.latest.iter().cloned().collect::<Vec<_>>().join("\n"))
}

struct Capture;

/// Stands in the extensions of a daemon's root span.
struct OfFleet(String);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Capture {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if attributes.metadata().name() == "daemon"
            && let Some(span) = context.span(id)
        {
            let mut fields = Text::default();
            attributes.record(&mut fields);
            span.extensions_mut().insert(OfFleet(fields.fleet));
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let scope = context.event_scope(event).into_iter().flatten();
        let fleet = scope.filter_map(|span| span.extensions().get::<OfFleet>().map(|name| name.0.clone())).last();
        let metadata = event.metadata();
        let ours = metadata.target().starts_with("tenantd");
        let is_problem = *metadata.level() <= Level::WARN && (ours || fleet.is_some());
        let mut fields = Text::default();
        event.record(&mut fields);
        let line = format!("{} {}: {}", metadata.level(), metadata.target(), fields.line);
        note(fleet.as_deref().unwrap_or(NOBODY), is_problem, line);
    }
}

/// Fields as text.
#[derive(Default)]
struct Text {
    fleet: String,
    line: String,
}

impl Visit for Text {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "fleet" {
            value.clone_into(&mut self.fleet);
        }
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let written = match field.name() {
            "message" => write!(self.line, "{value:?} "),
            // Where a line of the older `log` interface comes from.
            name if name.starts_with("log.") => Ok(()),
            name => write!(self.line, "{name}={value:?} "),
        };
        written.expect("a String takes every text");
    }
}

/// What a fleet may and must log. Dropped without a check, it checks itself.
#[derive(Debug)]
pub struct Expectations {
    fleet: String,
    /// Parts of lines, and whether they must come.
    declared: Mutex<Vec<(String, bool)>>,
    checked: std::sync::atomic::AtomicBool,
}

impl Expectations {
    pub fn new(fleet: &str) -> Self {
        Self { fleet: fleet.to_owned(), declared: Mutex::default(), checked: false.into() }
    }

    pub fn expect(&self, part: &str) {
        self.declared.lock().unwrap().push((part.to_owned(), true));
    }

    pub fn allow(&self, part: &str) {
        self.declared.lock().unwrap().push((part.to_owned(), false));
    }

    /// # Panics
    /// On a WARN or ERROR that nobody declared, and on a declared one that did not come.
    pub fn check(&self) {
        self.checked.store(true, std::sync::atomic::Ordering::SeqCst);
        let declared = self.declared.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let problems = problems(&self.fleet);
        let unexpected: Vec<_> =
            problems.iter().filter(|line| !declared.iter().any(|(part, _)| line.contains(part))).collect();
        assert!(unexpected.is_empty(), "unexpected lines: {unexpected:#?}");
        for (part, _) in declared.iter().filter(|(_, must)| *must) {
            assert!(problems.iter().any(|line| line.contains(part)), "no line had {part:?} in it: {problems:#?}");
        }
    }
}

impl Drop for Expectations {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the latest lines of {}:\n{}", self.fleet, latest(&self.fleet));
        } else if !self.checked.load(std::sync::atomic::Ordering::SeqCst) {
            self.check();
        }
    }
}
