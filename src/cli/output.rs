//! The only place that prints. Results go to standard output: tables for people, or JSON for scripts. Everything else
//! (progress, notes, errors) goes to standard error; with JSON only errors do, so that those can be parsed too.

use std::io::{self, IsTerminal as _, Write as _};

use prost::{Message, Name};
use serde_json::Value;

use super::error::Error;
use super::exit_code::ExitCode;
use super::json;

/// How results are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// One JSON document (the protobuf JSON mapping).
    Json,
    /// JSON, one line for each item, as soon as it is known.
    Jsonl,
}

/// Writes results and notes in the format that was asked for.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    format: Format,
}

impl Output {
    pub fn new(format: Format) -> Self {
        Self { format }
    }

    pub fn format(self) -> Format {
        self.format
    }

    /// One answer.
    pub fn answer<M: Message + Name>(self, message: &M, text: impl FnOnce() -> String) -> Result<(), Error> {
        match self.format {
            Format::Table => write(&text()),
            Format::Json => document(&json::value(message)?),
            Format::Jsonl => line(&json::value(message)?),
        }
    }

    /// What a command found out by itself, without the daemon.
    pub fn local(self, value: &Value, text: impl FnOnce() -> String) -> Result<(), Error> {
        match self.format {
            Format::Table => write(&text()),
            Format::Json => document(value),
            Format::Jsonl => line(value),
        }
    }

    /// A list: as one document, or each item on a line of its own.
    pub fn list<M, I>(self, whole: &M, items: &[I], text: impl FnOnce() -> String) -> Result<(), Error>
    where
        M: Message + Name,
        I: Message + Name,
    {
        match self.format {
            Format::Table => write(&text()),
            Format::Json => document(&json::value(whole)?),
            Format::Jsonl => items.iter().try_for_each(|item| line(&json::value(item)?)),
        }
    }

    /// Something that happened while the command goes on; written only as a line of JSON.
    pub fn event<M: Message + Name>(self, message: &M) -> Result<(), Error> {
        if self.format == Format::Jsonl { line(&json::value(message)?) } else { Ok(()) }
    }

    /// Something for a person to know, beside the result. A reader that went away is no reason to stop.
    pub fn note(self, text: &str) {
        if self.format == Format::Table {
            let _ = writeln!(io::stderr().lock(), "{text}");
        }
    }

    /// Whether a person watches: notes may be redrawn.
    pub fn is_live(self) -> bool {
        self.format == Format::Table && io::stderr().is_terminal()
    }

    /// Why the command did not do what it was asked.
    pub fn error(self, error: &Error) {
        // `tenantd … | head`: the reader has what it wanted.
        if matches!(error, Error::Output(error) if error.kind() == io::ErrorKind::BrokenPipe) {
            return;
        }
        let text = match self.format {
            Format::Table => error.text(),
            Format::Json | Format::Jsonl => error.json().to_string(),
        };
        let _ = writeln!(io::stderr().lock(), "{text}");
    }
}

/// The result of a command that has no other form than text; ends with a newline.
pub fn write(text: &str) -> Result<(), Error> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(Error::Output)
}

fn document(value: &Value) -> Result<(), Error> {
    let mut stdout = io::stdout().lock();
    serde_json::to_writer_pretty(&mut stdout, value).map_err(io::Error::from).map_err(Error::Output)?;
    stdout.write_all(b"\n").and_then(|()| stdout.flush()).map_err(Error::Output)
}

fn line(value: &Value) -> Result<(), Error> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{value}").and_then(|()| stdout.flush()).map_err(Error::Output)
}

/// What the parser of the command line has to say: help on standard output, or what is wrong on standard error.
pub fn usage(error: &clap::Error, format: Format) -> ExitCode {
    if !error.use_stderr() {
        let _ = error.print();
        return ExitCode::Done;
    }
    if format == Format::Table {
        let _ = error.print();
    } else {
        let text = error.render().to_string();
        let text = text.trim().trim_start_matches("error: ").to_owned();
        Output::new(format).error(&Error::Usage(text));
    }
    ExitCode::Usage
}

/// A line on standard error, before there is a format.
pub fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}
