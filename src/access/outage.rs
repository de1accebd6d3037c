//! Whether a database answers that callers are checked with: told once when it stops and once when it begins again. While it is away one
//! caller a second tries it; the others do not wait for it.

use std::fmt::Display;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::error::Error;

const TRY_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Outage {
    what: &'static str,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    since: Option<Instant>,
    try_at: Option<Instant>,
}

impl Outage {
    pub(super) fn of(what: &'static str) -> Self {
        Self { what, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks within `time_max`, unless it is known that nobody answers.
    pub(super) async fn ask<T, E: Into<Error>>(
        &self,
        time_max: Duration,
        question: impl Future<Output = Result<T, E>>,
    ) -> Result<T, Error> {
        if !self.state().may_ask(Instant::now()) {
            return Err(Error::Away { what: self.what });
        }
        match timeout(time_max, question).await.map(|answer| answer.map_err(Into::into)) {
            Ok(Err(error)) if error.is_away() => {
                self.away(&error);
                Err(error)
            }
            Ok(answer) => {
                self.back();
                answer
            }
            Err(_elapsed) => {
                self.away(&format_args!("no answer within {} s", time_max.as_secs()));
                Err(Error::Away { what: self.what })
            }
        }
    }

    fn away(&self, error: &dyn Display) {
        if self.state().away(Instant::now()) {
            tracing::warn!(%error, "{} does not answer: callers that are known go on, others are sent away", self.what);
        }
    }

    fn back(&self) {
        if let Some(since) = self.state().back() {
            tracing::info!(away = ?since.elapsed(), "{} answers again", self.what);
        }
    }
}

impl State {
    /// Whether nobody else has tried lately.
    fn may_ask(&mut self, now: Instant) -> bool {
        match self.try_at {
            Some(at) if now < at => false,
            Some(_) => {
                self.try_at = Some(now + TRY_INTERVAL);
                true
            }
            None => true,
        }
    }

    /// Whether this is news.
    fn away(&mut self, now: Instant) -> bool {
        self.try_at = Some(now + TRY_INTERVAL);
        let is_news = self.since.is_none();
        self.since.get_or_insert(now);
        is_news
    }

    /// Since when it was away, if it was.
    fn back(&mut self) -> Option<Instant> {
        self.try_at = None;
        self.since.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_call_a_second_tries_a_database_that_is_away() {
        let mut state = State::default();
        let start = Instant::now();
        assert!(state.may_ask(start) && state.may_ask(start));
        assert!(state.away(start));
        assert!(!state.may_ask(start));
        assert!(state.may_ask(start + TRY_INTERVAL));
        assert!(!state.may_ask(start + TRY_INTERVAL));
        assert!(!state.away(start + TRY_INTERVAL));
        assert_eq!(state.back(), Some(start));
        assert!(state.may_ask(start + TRY_INTERVAL));
        assert_eq!(state.back(), None);
    }
}
