//! What happens to a call before its method: the caller's key becomes a [`Principal`], the table of permissions says
//! whether it may, and the call runs in a span of its own under the daemon's, until its deadline and no longer than
//! the daemon serves. Every call but health needs a key.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};
use tracing::Instrument as _;

use super::status;
use crate::access::Access;
use crate::domain::principal::Principal;
use crate::shutdown::Tasks;

/// Answered without a key.
const HEALTH: &str = "/grpc.health.v1.Health/";
/// Answered to every caller with a key, where it is served at all.
const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/";
/// For calls that name no deadline.
const DEADLINE_DEFAULT: Duration = Duration::from_hours(1);

/// The call's deadline, in the request's extensions.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(pub Instant);

/// The host that was called, in the request's extensions.
#[derive(Debug, Clone)]
struct CalledHost(http::uri::Authority);

/// Puts the guard around every method.
#[derive(Debug, Clone)]
pub struct Guard {
    pub access: Access,
    pub tasks: Tasks,
    /// Cancelled when the drain has taken too long: running calls are cut off.
    pub cut: CancellationToken,
}

impl<S> Layer<S> for Guard {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { guard: self.clone(), inner }
    }
}

/// A service behind the guard.
#[derive(Debug, Clone)]
pub struct Guarded<S> {
    guard: Guard,
    inner: S,
}

impl<S> Service<Request<Body>> for Guarded<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        // The clone is not the one that was ready.
        let mut inner = self.inner.clone();
        let guard = self.guard.clone();
        let span = tracing::info_span!(parent: guard.tasks.span(), "call", method = request.uri().path());
        let call = async move {
            let deadline = deadline(&request);
            request.extensions_mut().insert(Deadline(deadline));
            if let Some(host) = request.uri().authority().cloned() {
                request.extensions_mut().insert(CalledHost(host));
            }
            let run = async {
                guard.admit(&mut request).await?;
                poll_fn(|context| inner.poll_ready(context)).await.map_err(never)?;
                inner.call(request).await.map_err(never)
            };
            let answer = tokio::select! {
                answer = tokio::time::timeout_at(deadline, run) => {
                    answer.unwrap_or_else(|_elapsed| Err(status::deadline_exceeded()))
                }
                () = guard.cut.cancelled() => Err(status::draining()),
            };
            Ok(answer.unwrap_or_else(status::answer))
        };
        Box::pin(call.instrument(span))
    }
}

fn never(error: Infallible) -> Status {
    match error {}
}

impl Guard {
    /// Who calls, and whether that may be.
    async fn admit(&self, request: &mut Request<Body>) -> Result<(), Status> {
        let path = request.uri().path();
        if path.starts_with(HEALTH) {
            return Ok(());
        }
        let header = request.headers().get(http::header::AUTHORIZATION).and_then(|header| header.to_str().ok());
        let principal = self.access.authenticate(header).await?;
        if !path.starts_with(REFLECTION) {
            self.access.authorize(&principal, path)?;
        }
        request.extensions_mut().insert(principal);
        Ok(())
    }
}

/// From `grpc-timeout`: at most eight digits and a unit.
fn deadline(request: &Request<Body>) -> Instant {
    let header = request.headers().get("grpc-timeout").and_then(|header| header.to_str().ok());
    Instant::now() + header.and_then(timeout).unwrap_or(DEADLINE_DEFAULT).min(DEADLINE_DEFAULT)
}

fn timeout(header: &str) -> Option<Duration> {
    let (digits, unit) = header.split_at_checked(header.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(value * 3_600),
        "M" => Duration::from_secs(value * 60),
        "S" => Duration::from_secs(value),
        "m" => Duration::from_millis(value),
        "u" => Duration::from_micros(value),
        "n" => Duration::from_nanos(value),
        _ => return None,
    })
}

/// Who made the call.
pub fn caller<T>(request: &tonic::Request<T>) -> Result<Arc<Principal>, Status> {
    request.extensions().get::<Arc<Principal>>().cloned().ok_or_else(|| status::denied("the call has no principal"))
}

/// When the call must have ended.
pub fn call_deadline<T>(request: &tonic::Request<T>) -> Instant {
    request.extensions().get::<Deadline>().map_or_else(|| Instant::now() + DEADLINE_DEFAULT, |deadline| deadline.0)
}

/// The host that was called, with its port if it was given.
pub fn called_host<T>(request: &tonic::Request<T>) -> Option<&str> {
    request.extensions().get::<CalledHost>().map(|host| host.0.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_as_grpc_writes_them() {
        assert_eq!(timeout("2H"), Some(Duration::from_hours(2)));
        assert_eq!(timeout("250m"), Some(Duration::from_millis(250)));
        assert_eq!(timeout("99999999n"), Some(Duration::from_nanos(99_999_999)));
        for bad in ["", "S", "1", "1x", "123456789S", "-1S", "1.5S", "é"] {
            assert_eq!(timeout(bad), None, "{bad}");
        }
    }
}
