//! What happens to a call before its method: the caller's credentials become a [`Principal`], the table of permissions says
//! whether it may, and the call runs in a span of its own under the daemon's, until its deadline and no longer than
//! the daemon serves. Every call but health needs credentials.

use std::convert::Infallible;
use std::future::{Future, pending, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::time::{Instant, sleep_until};
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, Service};
use tracing::Instrument as _;

use super::called::{calling, tenant_refused};
use super::cut::{Bounded, Cut, Cuts};
use super::peer::Peer;
use super::{HEALTH_BYTES_MAX, REQUEST_BYTES_MAX, message, status};
use crate::access::{Access, Caller, Credentials, Denial};
use crate::domain::principal::Principal;
use crate::shutdown::Tasks;

/// Answered without credentials, and never too often.
const HEALTH: &str = "/grpc.health.v1.Health/";
/// Answered to every caller who is let in, where it is served at all.
const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/";
/// What the audit log says of a method's own refusals.
pub(super) const OUT_OF_SCOPE: &str = "the tenant or the fleet is not in scope";
/// For calls that name no deadline.
const DEADLINE_DEFAULT: Duration = Duration::from_hours(1);

/// What is known of a call before its method runs, in the request's extensions.
#[derive(Debug, Clone)]
struct Call {
    /// Nobody in particular asks for health.
    principal: Option<Arc<Principal>>,
    deadline: Instant,
    host: Option<http::uri::Authority>,
}

/// Puts the guard around every method.
#[derive(Debug, Clone)]
pub struct Guard {
    pub access: Access,
    pub tasks: Tasks,
    /// Made when the drain begins: what is called from then on is refused.
    pub draining: Arc<Cut>,
    pub cuts: Arc<Cuts>,
}

impl<S> Layer<S> for Guard {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { guard: Arc::new(self.clone()), inner }
    }
}

/// A service behind the guard.
#[derive(Debug, Clone)]
pub struct Guarded<S> {
    guard: Arc<Guard>,
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

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // The clone is not the one that was ready.
        let mut inner = self.inner.clone();
        let guard = Arc::clone(&self.guard);
        let span =
            guard.tasks.span_of(|root| tracing::debug_span!(parent: root, "call", method = request.uri().path()));
        let method = path(&request);
        let cut = Arc::clone(if method.path().starts_with(HEALTH) { &guard.cuts.health } else { &guard.cuts.calls });
        // Before tonic's own clock begins, which ends a call without a word.
        let named = named_timeout(&request);
        let deadline = Instant::now() + named.unwrap_or(DEADLINE_DEFAULT);
        let call = async move {
            let run = async {
                let origin = Origin::of(&request);
                let (mut request, caller) = guard.admitted(request, &origin).await?;
                let principal = caller.as_ref().map(|caller| Arc::clone(&caller.principal));
                let host = request.uri().authority().cloned();
                request.extensions_mut().insert(Call { principal, deadline, host });
                poll_fn(|context| inner.poll_ready(context)).await.map_err(never)?;
                let answer = inner.call(request).await.map_err(never)?;
                let answer = status::undecodable::instead_of_headers(answer.headers()).map_or(answer, status::answer);
                if let Some(caller) = caller
                    && let Some(refusal) = refusal(&answer)
                {
                    guard.failed(&origin, &caller, refusal).await;
                }
                Ok(answer.map(|body| Bounded::body(body, cut)))
            };
            // What ends a call that names no deadline is part of its method.
            let over = async {
                match named {
                    Some(_) => Box::pin(sleep_until(deadline)).await,
                    None => pending().await,
                }
            };
            let answer = tokio::select! {
                // Most calls are over before there is anything to wait for.
                biased;
                answer = run => answer,
                () = guard.cuts.calls.made() => Err(status::cut_off()),
                () = over => Err(status::deadline_exceeded()),
            };
            Ok(answer.unwrap_or_else(status::answer))
        };
        Box::pin(calling(method, call).instrument(span))
    }
}

/// How a call was refused before anything was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    /// For want of a right.
    Denial,
    Other,
}

fn refusal(answer: &Response<Body>) -> Option<Refusal> {
    match Code::from_bytes(answer.headers().get("grpc-status")?.as_bytes()) {
        Code::Ok => None,
        Code::PermissionDenied => {
            Some(if status::denials::is_answered(answer.headers()) { Refusal::Denial } else { Refusal::Other })
        }
        _ => Some(Refusal::Other),
    }
}

/// Where a call comes from and goes to, kept beyond the request's own life. Cheap: its parts are shared.
struct Origin {
    peer: Peer,
    path: PathAndQuery,
    user_agent: Option<HeaderValue>,
}

impl Origin {
    fn of(request: &Request<Body>) -> Self {
        Self {
            peer: Peer::of(request.extensions()),
            path: path(request),
            user_agent: request.headers().get(http::header::USER_AGENT).cloned(),
        }
    }
}

fn path(request: &Request<Body>) -> PathAndQuery {
    request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"))
}

fn never(error: Infallible) -> Status {
    match error {}
}

impl Guard {
    /// The request with its whole message, unless its method takes many, and who calls. Nobody in particular asks for
    /// health.
    async fn admitted(
        &self,
        request: Request<Body>,
        origin: &Origin,
    ) -> Result<(Request<Body>, Option<Arc<Caller>>), Status> {
        let path = origin.path.path();
        let (parts, body) = request.into_parts();
        if path.starts_with(HEALTH) {
            let body = message::whole(body, HEALTH_BYTES_MAX).await?;
            return Ok((Request::from_parts(parts, body), None));
        }
        let mut caller = self.admit(&parts.headers, origin, true).await?;
        if !message::is_single(path) || path.starts_with(REFLECTION) {
            return Ok((Request::from_parts(parts, body), Some(caller)));
        }
        let admitted_at = Instant::now();
        let body = tokio::select! {
            biased;
            body = message::whole(body, REQUEST_BYTES_MAX) => body?,
            () = self.draining.made() => return Err(status::draining()),
        };
        if admitted_at.elapsed() >= message::STALE_AFTER {
            caller = self.admit(&parts.headers, origin, false).await?;
        }
        Ok((Request::from_parts(parts, body), Some(caller)))
    }

    /// Who calls, and whether that may be. A call that `is_new` counts.
    async fn admit(&self, headers: &HeaderMap, origin: &Origin, is_new: bool) -> Result<Arc<Caller>, Status> {
        let path = origin.path.path();
        if self.draining.is_made() {
            return Err(status::draining());
        }
        let header = headers.get(http::header::AUTHORIZATION).map(http::HeaderValue::to_str);
        let credentials = Credentials {
            header: header.map(Result::unwrap_or_default),
            certificate: origin.peer.certificate(),
            address: origin.peer.address,
        };
        let caller = match self.access.authenticate(&credentials).await {
            Ok(caller) => caller,
            Err(error) => {
                if let Some(reason) = error.denial() {
                    self.denied(origin, None, reason).await;
                }
                return Err(error.into());
            }
        };
        let mut allowed = if is_new { self.access.count(&caller) } else { Ok(()) };
        if allowed.is_ok() && !path.starts_with(REFLECTION) {
            allowed = self.access.authorize(&caller.principal, path);
        }
        if let Err(error) = allowed {
            self.access.count_failure(&caller);
            if let Some(reason) = error.denial() {
                self.denied(origin, Some(&caller), reason).await;
            }
            return Err(error.into());
        }
        Ok(caller)
    }

    /// A method has refused the call.
    async fn failed(&self, origin: &Origin, caller: &Caller, refusal: Refusal) {
        self.access.count_failure(caller);
        if refusal == Refusal::Denial {
            self.denied(origin, Some(caller), OUT_OF_SCOPE).await;
        }
    }

    async fn denied(&self, origin: &Origin, caller: Option<&Caller>, reason: &str) {
        let principal = caller.map(|caller| &caller.principal);
        let denial = Denial {
            principal: principal.map(|principal| principal.name.as_str()),
            user: principal.and_then(|principal| principal.user),
            path: origin.path.path(),
            reason,
            tenant: tenant_refused(),
            address: origin.peer.address,
            user_agent: origin.user_agent.as_ref().and_then(|agent| agent.to_str().ok()),
        };
        // What most calls do not need is not part of each call's future.
        Box::pin(self.access.denied(&denial)).await;
    }
}

/// From `grpc-timeout`: at most eight digits and a unit.
fn named_timeout(request: &Request<Body>) -> Option<Duration> {
    let header = request.headers().get("grpc-timeout")?.to_str().ok()?;
    timeout(header).map(|named| named.min(DEADLINE_DEFAULT))
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
    let principal = request.extensions().get::<Call>().and_then(|call| call.principal.clone());
    principal.ok_or_else(|| status::denied("the call has no principal"))
}

/// When the call must have ended.
pub fn call_deadline<T>(request: &tonic::Request<T>) -> Instant {
    request.extensions().get::<Call>().map_or_else(|| Instant::now() + DEADLINE_DEFAULT, |call| call.deadline)
}

/// The host that was called, with its port if it was given.
pub fn called_host<T>(request: &tonic::Request<T>) -> Option<&str> {
    request.extensions().get::<Call>()?.host.as_ref().map(http::uri::Authority::as_str)
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
