//! What is known of the call that runs: its method, for lines of the log, and the tenant that it was refused for, for the
//! audit log, which is told more than the caller. A span for each call would say the first and costs every call several
//! microseconds; there is one at the level DEBUG.

use std::fmt::Display;
use std::future::Future;
use std::sync::OnceLock;

use http::uri::PathAndQuery;

tokio::task_local! {
    static CALL: Called;
}

struct Called {
    method: PathAndQuery,
    refused_for: OnceLock<String>,
}

/// Runs a call of this method.
pub(super) fn calling<F: Future>(method: PathAndQuery, call: F) -> impl Future<Output = F::Output> {
    CALL.scope(Called { method, refused_for: OnceLock::new() }, call)
}

/// The method of the call that this runs in; empty outside of calls, as in streams, whose tasks have names.
pub(super) fn method() -> String {
    CALL.try_with(|call| call.method.path().to_owned()).unwrap_or_default()
}

/// Notes the tenant, as the caller named it, that the call is refused for. Streams have nobody to tell.
pub(super) fn refused_for(tenant: &dyn Display) {
    let _outside_of_calls = CALL.try_with(|call| call.refused_for.set(tenant.to_string()));
}

/// The tenant that the call was refused for.
pub(super) fn tenant_refused() -> Option<String> {
    CALL.try_with(|call| call.refused_for.get().cloned()).ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_call_knows_its_method() {
        assert_eq!(method(), "");
        let call = async {
            tokio::task::yield_now().await;
            method()
        };
        assert_eq!(calling(PathAndQuery::from_static("/a.B/C"), call).await, "/a.B/C");
    }
}
