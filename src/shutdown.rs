//! Tasks with names, and the way down. Every task of a daemon is spawned through one [`Tasks`], inside the daemon's
//! root span (so that where several share a process, each log line is charged to its daemon), hears the one token, and
//! is joined at the end. A task's own span is there at the level DEBUG: entering it costs every poll of every session.

use std::collections::BTreeMap;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, Span};

/// How long a task that has panicked stays away.
const PANIC_PAUSE: Duration = Duration::from_secs(1);

/// Spawns, names, and joins a daemon's tasks. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Tasks {
    tracker: TaskTracker,
    token: CancellationToken,
    span: Span,
    alive: Arc<Mutex<BTreeMap<&'static str, usize>>>,
}

impl Tasks {
    /// `span` is the root of everything that the tasks log.
    pub fn new(span: Span) -> Self {
        Self { tracker: TaskTracker::new(), token: CancellationToken::new(), span, alive: Arc::default() }
    }

    /// The span that the daemon's tasks run in.
    pub fn span(&self) -> &Span {
        &self.span
    }

    /// A span under the daemon's, or that one itself while nobody wants to know more.
    pub fn span_of(&self, span: impl FnOnce(&Span) -> Span) -> Span {
        let span = span(&self.span);
        if span.is_disabled() { self.span.clone() } else { span }
    }

    /// Cancelled when the daemon goes down; tasks end soon after.
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// Runs `task` under its name, inside the daemon's span.
    pub fn spawn<F>(&self, name: &'static str, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let guard = Alive::new(name, Arc::clone(&self.alive));
        let span = self.span_of(|root| tracing::debug_span!(parent: root, "task", name));
        #[expect(clippy::disallowed_methods, reason = "the one place where tasks are spawned")]
        let handle = tokio::spawn(
            self.tracker.track_future(
                async move {
                    let _guard = guard;
                    task.await
                }
                .instrument(span),
            ),
        );
        handle
    }

    /// Runs a task that has to be there for as long as the daemon is: one that panics is begun anew.
    pub fn keep<F, T>(&self, name: &'static str, mut task: F)
    where
        F: FnMut() -> T + Send + 'static,
        T: Future<Output = ()> + Send + 'static,
    {
        let token = self.token.clone();
        self.spawn(name, async move {
            while AssertUnwindSafe(task()).catch_unwind().await.is_err() {
                tracing::error!(task = name, "a task has panicked, and is begun anew");
                if token.run_until_cancelled(sleep(PANIC_PAUSE)).await.is_none() {
                    return;
                }
            }
        });
    }

    /// Runs blocking work (compression, hashing) on a thread of its own, under its name, inside the daemon's span.
    pub fn spawn_blocking<F, T>(&self, name: &'static str, work: F) -> JoinHandle<T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        let guard = Alive::new(name, Arc::clone(&self.alive));
        let span = self.span_of(|root| tracing::debug_span!(parent: root, "blocking", name));
        #[expect(clippy::disallowed_methods, reason = "the one place where blocking work is spawned")]
        self.tracker.spawn_blocking(move || {
            let _guard = guard;
            span.in_scope(work)
        })
    }

    /// Tells every task to end, and waits for them. Answers with the names of those that did not end in time.
    pub async fn end(&self, timeout: Duration) -> Vec<&'static str> {
        self.token.cancel();
        self.tracker.close();
        match tokio::time::timeout(timeout, self.tracker.wait()).await {
            Ok(()) => Vec::new(),
            Err(_elapsed) => self.alive.lock().unwrap_or_else(PoisonError::into_inner).keys().copied().collect(),
        }
    }
}

/// Counts a task as alive from before it is spawned until it is dropped.
struct Alive {
    name: &'static str,
    alive: Arc<Mutex<BTreeMap<&'static str, usize>>>,
}

impl Alive {
    fn new(name: &'static str, alive: Arc<Mutex<BTreeMap<&'static str, usize>>>) -> Self {
        *alive.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_default() += 1;
        Self { name, alive }
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        let mut alive = self.alive.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = alive.get_mut(self.name) {
            *count -= 1;
            if *count == 0 {
                alive.remove(self.name);
            }
        }
    }
}

/// A token that SIGTERM and SIGINT cancel from now on.
///
/// # Errors
/// When the process may not listen to signals.
pub fn stop_signals(tasks: &Tasks) -> std::io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = CancellationToken::new();
    let (stopped, ended) = (stop.clone(), tasks.token().clone());
    tasks.spawn("signals", async move {
        let name = tokio::select! {
            () = ended.cancelled() => return,
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        tracing::info!(signal = name, "draining");
        stopped.cancel();
    });
    Ok(stop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_is_kept_is_begun_anew_when_it_panics() {
        let tasks = Tasks::new(Span::none());
        let (token, mut begun, (sender, reached)) = (tasks.token().clone(), 0, tokio::sync::oneshot::channel());
        let mut sender = Some(sender);
        tasks.keep("clumsy", move || {
            begun += 1;
            let (token, sender) = (token.clone(), if begun == 2 { sender.take() } else { None });
            async move {
                let sender = sender.unwrap();
                sender.send(()).unwrap();
                token.cancelled().await;
            }
        });
        reached.await.unwrap();
        assert!(tasks.end(Duration::from_secs(10)).await.is_empty());
    }

    #[tokio::test]
    async fn every_task_is_joined_and_a_stubborn_one_is_named() {
        let tasks = Tasks::new(Span::none());
        let token = tasks.token().clone();
        tasks.spawn("obedient", async move { token.cancelled().await });
        assert!(tasks.end(Duration::from_secs(10)).await.is_empty());

        let tasks = Tasks::new(Span::none());
        tasks.spawn("stubborn", std::future::pending::<()>());
        assert_eq!(tasks.end(Duration::from_millis(20)).await, ["stubborn"]);
    }
}
