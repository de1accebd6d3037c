//! A call that goes on: a stream. Its caller is looked at again and again, as if it called anew, so that whoever is
//! revoked, or loses what the stream has used, loses the stream within seconds. What is refused in the middle of it is
//! written down as refused calls are.
//!
//! Nothing of this is made for a call with one answer.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::HeaderValue;
use http::header::{AUTHORIZATION, USER_AGENT};
use tokio::time::{Instant, sleep};
use tonic::{Request, Status};

use super::peer::Peer;
use super::{Service, auth, status};
use crate::access::{self, Access, Credentials, Denial, Needs};
use crate::domain::permission::Permission;
use crate::domain::principal::{Principal, Scope};
use crate::domain::tenant::TenantCode;
use crate::router::Holder;

/// How often the caller is looked at, which takes a look into memory: `access` hears of most changes.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long a stream goes on while nobody can say who its caller is.
const UNKNOWN_MAX: Duration = Duration::from_mins(15);

/// One stream's caller. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Ongoing(Arc<Inner>);

struct Inner {
    access: Access,
    /// As `/tenantd.v1.QueryService/Transact`.
    path: &'static str,
    peer: Peer,
    authorization: Option<HeaderValue>,
    user_agent: Option<HeaderValue>,
    /// What the caller saw at the beginning, of a stream that shows neither more nor less.
    exactly: Option<Scope>,
    state: Mutex<State>,
}

/// Who calls, by the last look, and what the stream has used.
struct State {
    principal: Arc<Principal>,
    needs: Needs,
}

/// Without its credentials.
impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ongoing").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Ongoing {
    /// A stream that says what it uses as it goes on.
    pub(super) fn new<T>(service: &Service, request: &Request<T>, path: &'static str) -> Result<Self, Status> {
        Ok(Self::with(service, request, path, auth::caller(request)?, Needs::default(), None))
    }

    /// A stream that shows whatever its caller may see.
    pub(super) fn watch<T>(service: &Service, request: &Request<T>, path: &'static str) -> Result<Self, Status> {
        let principal = auth::caller(request)?;
        let needs = Needs::scope(&principal);
        Ok(Self::with(service, request, path, principal, needs, None))
    }

    /// A stream from which its caller learns which tenants there are: it ends as well when the caller may see more.
    pub(super) fn watch_all<T>(service: &Service, request: &Request<T>, path: &'static str) -> Result<Self, Status> {
        let principal = auth::caller(request)?;
        let (needs, exactly) = (Needs::scope(&principal), Some(principal.scope.clone()));
        Ok(Self::with(service, request, path, principal, needs, exactly))
    }

    fn with<T>(
        service: &Service,
        request: &Request<T>,
        path: &'static str,
        principal: Arc<Principal>,
        needs: Needs,
        exactly: Option<Scope>,
    ) -> Self {
        let headers = request.metadata().as_ref();
        Self(Arc::new(Inner {
            access: service.api.access.clone(),
            path,
            peer: Peer::of(request.extensions()),
            authorization: headers.get(AUTHORIZATION).cloned(),
            user_agent: headers.get(USER_AGENT).cloned(),
            exactly,
            state: Mutex::new(State { principal, needs }),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The caller as it is by now.
    pub(super) fn principal(&self) -> Arc<Principal> {
        Arc::clone(&self.state().principal)
    }

    /// As whom the stream holds its connections.
    pub(super) fn holder(&self) -> Holder {
        let method = self.0.path.rsplit('/').next().unwrap_or_default();
        Holder { principal: Some(self.principal()), method }
    }

    /// The stream has reached a tenant.
    pub(super) fn reached(&self, tenant: &TenantCode) {
        let State { principal, needs } = &mut *self.state();
        needs.tenant(tenant, principal);
    }

    /// The stream has used a permission beside its method's, on what is no single tenant's.
    pub(super) fn used_on_fleet(&self, permission: Permission) {
        let needs = &mut self.state().needs;
        needs.permission(permission);
        needs.whole_fleet();
    }

    /// Resolves once the caller may not go on, with what it is told.
    pub(super) async fn lost(&self) -> Status {
        let mut known_at = Instant::now();
        loop {
            sleep(INTERVAL).await;
            match self.look().await {
                Ok(()) if self.has_grown() => return status::scope_grown(),
                Ok(()) => known_at = Instant::now(),
                Err(error) => match error.denial() {
                    Some(reason) => {
                        self.denied(reason).await;
                        return error.into();
                    }
                    None if error.is_away() && known_at.elapsed() <= UNKNOWN_MAX => {}
                    None => return error.into(),
                },
            }
        }
    }

    /// Whether the caller, who has lost nothing, may see more than the stream shows.
    fn has_grown(&self) -> bool {
        self.0.exactly.as_ref().is_some_and(|scope| *scope != self.state().principal.scope)
    }

    async fn look(&self) -> Result<(), access::Error> {
        let inner = &*self.0;
        let header = inner.authorization.as_ref().map(HeaderValue::to_str);
        let credentials = Credentials {
            header: header.map(Result::unwrap_or_default),
            certificate: inner.peer.certificate(),
            // Whoever guesses at the same address takes nothing from a caller who is let in.
            address: None,
        };
        let caller = inner.access.authenticate(&credentials).await?;
        inner.access.authorize(&caller.principal, inner.path)?;
        let mut state = self.state();
        state.needs.check(&caller.principal)?;
        state.principal = Arc::clone(&caller.principal);
        Ok(())
    }

    /// Writes down a refusal in the middle of the stream, if it was one for want of a right.
    pub(super) async fn refused(&self, status: Status) -> Status {
        if status::denials::is_denial(&status) {
            self.denied(auth::OUT_OF_SCOPE).await;
        }
        status
    }

    async fn denied(&self, reason: &str) {
        let inner = &*self.0;
        let principal = self.principal();
        let denial = Denial {
            principal: Some(&principal.name),
            user: principal.user,
            path: inner.path,
            reason,
            tenant: None,
            address: inner.peer.address,
            user_agent: inner.user_agent.as_ref().and_then(|agent| agent.to_str().ok()),
        };
        inner.access.denied(&denial).await;
    }
}
