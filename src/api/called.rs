//! The method that is called, for lines of the log. A span for each call would say the same and costs every call several
//! microseconds; there is one at the level DEBUG.

use std::future::Future;

use http::uri::PathAndQuery;

tokio::task_local! {
    static METHOD: PathAndQuery;
}

/// Runs a call of this method.
pub(super) fn calling<F: Future>(method: PathAndQuery, call: F) -> impl Future<Output = F::Output> {
    METHOD.scope(method, call)
}

/// The method of the call that this runs in; empty outside of calls, as in streams, whose tasks have names.
pub(super) fn method() -> String {
    METHOD.try_with(|method| method.path().to_owned()).unwrap_or_default()
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
