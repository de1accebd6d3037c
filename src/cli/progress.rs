//! Progress of what takes time: a bar that is redrawn on a terminal, a line for each thing done elsewhere.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::output::Output;

const REDRAW_INTERVAL: Duration = Duration::from_millis(100);

/// Shows how far something is. Dropping it takes the bar away and leaves the lines.
#[derive(Debug)]
pub struct Progress {
    output: Output,
    bar: Option<ProgressBar>,
}

impl Progress {
    pub fn new(output: Output) -> Self {
        let bar = output.is_live().then(|| {
            let template = "  {spinner} [{bar:24}] {pos}/{len} {msg} {elapsed}";
            let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::new(0).with_style(style.progress_chars("=> "));
            bar.enable_steady_tick(REDRAW_INTERVAL);
            bar
        });
        Self { output, bar }
    }

    /// How many of how many are done, and what is being done now.
    pub fn at(&self, done: usize, total: usize, now: &str) {
        if let Some(bar) = &self.bar {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
            bar.set_message(now.to_owned());
        }
    }

    /// Something that was done; stays on the screen.
    pub fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => self.output.note(text),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
