//! The table at the end: what was measured, its ratio, its goal, and what bounds it.

use comfy_table::{ContentLineStyle, LineStyle, Table, TableStyle};

use crate::load::Sample;
use crate::stage::Stage;

const COLUMNS: TableStyle = TableStyle::new()
    .header_lines(ContentLineStyle::none().junction('|'))
    .header_separator(LineStyle::none().fill('-').junction('+'))
    .content_lines(ContentLineStyle::none().junction('|'));

/// What must hold of a figure.
#[derive(Debug, Clone, Copy)]
pub enum Goal {
    AtLeast(f64),
    AtMost(f64),
}

impl Goal {
    fn verdict(self, value: f64) -> &'static str {
        match self {
            Self::AtLeast(least) if value >= least => "PASS",
            Self::AtMost(most) if value <= most => "PASS",
            _ => "MISS",
        }
    }

    fn text(self, unit: &str) -> String {
        match self {
            Self::AtLeast(least) => format!("≥ {least}{unit}"),
            Self::AtMost(most) => format!("≤ {most}{unit}"),
        }
    }
}

/// What was measured.
#[derive(Debug, Default)]
pub struct Report {
    machine: Vec<String>,
    lines: Vec<[String; 6]>,
    notes: Vec<String>,
}

impl Report {
    pub async fn machine(&mut self, stage: &Stage) {
        let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let load = load.split(' ').next().unwrap_or_default().to_owned();
        let version = stage.judge("postgres").await.query_one("SHOW server_version", &[]).await.unwrap();
        let version: String = version.get(0);
        self.machine.push(format!(
            "{cores} cores, PostgreSQL {version} without fsync, everything on the loopback of one machine; load before: {load}"
        ));
    }

    /// One figure. `ours` and `theirs` are in words.
    pub fn line(&mut self, what: &str, ours: &str, theirs: &str, value: f64, unit: &str, goal: Goal) {
        let verdict = goal.verdict(value);
        let value = format!("{value:.2}{unit}");
        let against = if theirs.is_empty() { String::new() } else { format!(", against {theirs}") };
        println!("  {what}: {ours}{against}: {value} {verdict}");
        let texts = [what, ours, theirs, &value, &goal.text(unit), verdict];
        self.lines.push(texts.map(str::to_owned));
    }

    /// What bounds the figures, and how they were taken.
    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// Failed calls belong into the table.
    pub fn errors(&mut self, what: &str, sample: &Sample) {
        if sample.error_count > 0 {
            self.note(format!("{what}: {} calls FAILED, as {:?}", sample.error_count, sample.errors));
        }
    }

    pub fn print(&self) {
        let mut table = Table::new();
        table.load_style(COLUMNS);
        table.set_header(["work", "tenantd", "against", "figure", "goal", ""]);
        for line in &self.lines {
            table.add_row(line);
        }
        println!("\n{}\n{table}", self.machine.join("\n"));
        for note in &self.notes {
            println!("- {note}");
        }
    }
}

/// Thousands, as `24.3 k/s`.
pub fn per_second(rate: f64) -> String {
    if rate >= 10_000.0 { format!("{:.1} k/s", rate / 1e3) } else { format!("{rate:.0}/s") }
}
