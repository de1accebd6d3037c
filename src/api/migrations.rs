//! MigrationService: rollouts over the whole fleet, for callers whose scope is the whole fleet.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use tonic::{Request, Response, Status};

use super::ongoing::Ongoing;
use super::watch::Answers;
use super::{Service, auth, convert, scope, texts};
use crate::catalog::{Catalog, RolloutTarget};
use crate::domain::migration::TargetState;
use crate::domain::operation::OperationId;
use crate::domain::tenant::TenantId;
use crate::operations::RolloutRequest;
use crate::proto::v1;
use crate::proto::v1::migration_service_server::MigrationService;
use crate::proto::v1::{
    CreateRolloutRequest, CreateRolloutResponse, GetRolloutRequest, GetRolloutResponse, ListRolloutsRequest,
    ListRolloutsResponse, WatchRolloutRequest, WatchRolloutResponse,
};

/// Targets of one page when the caller does not say: callers of before there were pages have most fleets at once.
const TARGETS_DEFAULT: i32 = 1_000;
/// How often a watched rollout is read again.
const POLL_INTERVAL: Duration = Duration::from_millis(300);

#[tonic::async_trait]
impl MigrationService for Service {
    type WatchRolloutStream = Answers<WatchRolloutResponse>;

    async fn create_rollout(
        &self,
        request: Request<CreateRolloutRequest>,
    ) -> Result<Response<CreateRolloutResponse>, Status> {
        let principal = auth::caller(&request)?;
        scope::whole_fleet(&principal, "migrating the fleet")?;
        let message = texts::checked(request)?;
        let request = convert::request(principal.name.clone(), &message.request_id, message.validate_only)?;
        let rollout = RolloutRequest {
            failures_max: message.max_failures,
            tenants: &message.tenants,
            verify: message.verify,
            pause: message.pause,
        };
        let begun = self.api.operations.rollout_create(&request, &rollout).await?;
        let rollout = match begun {
            Some(operation) => Some(rollout_get(&self.api.catalog, operation.id).await?),
            None => None,
        };
        Ok(Response::new(CreateRolloutResponse { rollout }))
    }

    async fn get_rollout(&self, request: Request<GetRolloutRequest>) -> Result<Response<GetRolloutResponse>, Status> {
        scope::whole_fleet(&*auth::caller(&request)?, "a rollout")?;
        let message = texts::checked(request)?;
        let id = OperationId(convert::uuid("rollout_id", &message.rollout_id)?);
        let size = if message.page_size == 0 { TARGETS_DEFAULT } else { message.page_size };
        let page = convert::page(size, message.page_token)?;
        let mut rollout = rollout_get(&self.api.catalog, id).await?;
        let paged = self.api.catalog.targets_page(id, &page).await?;
        let targets = paged.rows.into_iter().map(convert::rollout_target).collect();
        let (targets, next_page_token) = convert::page_cut(targets, paged.next, code);
        rollout.targets = targets;
        Ok(Response::new(GetRolloutResponse { rollout: Some(rollout), next_page_token }))
    }

    async fn list_rollouts(
        &self,
        request: Request<ListRolloutsRequest>,
    ) -> Result<Response<ListRolloutsResponse>, Status> {
        scope::whole_fleet(&*auth::caller(&request)?, "the list of rollouts")?;
        let message = texts::checked(request)?;
        let page = convert::page(message.page_size, message.page_token)?;
        let paged = self.api.catalog.rollout_list(&page).await?;
        let mut rollouts = Vec::with_capacity(paged.rows.len());
        for rollout in paged.rows {
            let counts = counts(&self.api.catalog.targets_count(rollout.id).await?);
            rollouts.push(convert::rollout(rollout, counts));
        }
        Ok(Response::new(ListRolloutsResponse { rollouts, next_page_token: paged.next.unwrap_or_default() }))
    }

    async fn watch_rollout(
        &self,
        request: Request<WatchRolloutRequest>,
    ) -> Result<Response<Self::WatchRolloutStream>, Status> {
        scope::whole_fleet(&*auth::caller(&request)?, "a rollout")?;
        let ongoing = Ongoing::watch(self, &request, "/tenantd.v1.MigrationService/WatchRollout")?;
        let id = OperationId(convert::uuid("rollout_id", &request.get_ref().rollout_id)?);
        // An unknown rollout is an answer of the call, not of its stream.
        self.api.catalog.rollout_get(id).await?;
        Ok(Response::new(self.watch("watch rollout", ongoing, updates(self.api.catalog.clone(), id))))
    }
}

/// A rollout without its targets.
async fn rollout_get(catalog: &Catalog, id: OperationId) -> Result<v1::Rollout, Status> {
    let rollout = catalog.rollout_get(id).await?;
    Ok(convert::rollout(rollout, counts(&catalog.targets_count(id).await?)))
}

fn code(target: &v1::RolloutTarget) -> String {
    target.code.clone()
}

/// The rollout with all of its targets first, then with those that changed, until it has ended.
fn updates(
    catalog: Catalog,
    id: OperationId,
) -> impl Stream<Item = Result<WatchRolloutResponse, Status>> + Send + 'static {
    let seen: Option<HashMap<TenantId, TargetState>> = Some(HashMap::new());
    let read = futures_util::stream::unfold((catalog, seen, true), move |(catalog, seen, is_first)| async move {
        let mut seen = seen?;
        loop {
            let update = match update(&catalog, id, &mut seen).await {
                Ok(update) => update,
                Err(status) => return Some((Err(status), (catalog, None, false))),
            };
            let has_ended = update.state() != v1::RolloutState::Running;
            if is_first || has_ended || !update.targets.is_empty() {
                let seen = (!has_ended).then_some(seen);
                return Some((Ok(update), (catalog, seen, false)));
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    });
    read.flat_map(|update| futures_util::stream::iter(update.map_or_else(|status| vec![Err(status)], in_parts)))
}

/// As many messages as the targets need. Only the last says that the rollout has ended: there is nothing behind it.
fn in_parts(mut rollout: v1::Rollout) -> Vec<Result<WatchRolloutResponse, Status>> {
    let (mut parts, mut left) = (Vec::new(), std::mem::take(&mut rollout.targets));
    loop {
        let count = convert::page_cut_at(&left);
        if count >= left.len() {
            parts.push(v1::Rollout { targets: left, ..rollout });
            break;
        }
        let rest = left.split_off(count);
        let targets = std::mem::replace(&mut left, rest);
        let state = v1::RolloutState::Running.into();
        parts.push(v1::Rollout { targets, state, end_time: None, ..rollout.clone() });
    }
    parts.into_iter().map(|part| Ok(WatchRolloutResponse { rollout: Some(part) })).collect()
}

/// The rollout with the targets that changed.
async fn update(
    catalog: &Catalog,
    id: OperationId,
    seen: &mut HashMap<TenantId, TargetState>,
) -> Result<v1::Rollout, Status> {
    // The rollout first: when it has ended, every target that is read after it has ended too.
    let mut rollout = rollout_get(catalog, id).await?;
    let targets = catalog.targets_list(id).await?;
    let mut changed = |target: &RolloutTarget| seen.insert(target.tenant, target.state) != Some(target.state);
    rollout.targets = targets.into_iter().filter(|target| changed(target)).map(convert::rollout_target).collect();
    Ok(rollout)
}

fn counts(by_state: &std::collections::BTreeMap<&'static str, i64>) -> v1::RolloutCounts {
    let of =
        |state: TargetState| i32::try_from(by_state.get(state.name()).copied().unwrap_or_default()).unwrap_or(i32::MAX);
    v1::RolloutCounts {
        current: of(TargetState::Current),
        pending: of(TargetState::Pending).saturating_add(of(TargetState::Running)),
        migrated: of(TargetState::Migrated),
        failed: of(TargetState::Failed),
        skipped: of(TargetState::Skipped),
        ahead: of(TargetState::Ahead),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_part_says_that_it_is_over() {
        let target = |error: usize| v1::RolloutTarget { error: "x".repeat(error), ..v1::RolloutTarget::default() };
        let ended = |targets| v1::Rollout {
            state: v1::RolloutState::Partial.into(),
            end_time: Some(prost_types::Timestamp::default()),
            targets,
            ..v1::Rollout::default()
        };
        let parts = |rollout| {
            let parts = in_parts(rollout).into_iter().map(|part| part.unwrap().rollout.unwrap());
            parts.map(|part| (part.targets.len(), part.state(), part.end_time.is_some())).collect::<Vec<_>>()
        };
        assert_eq!(parts(ended(vec![])), [(0, v1::RolloutState::Partial, true)]);
        assert_eq!(parts(ended(vec![target(1); 3])), [(3, v1::RolloutState::Partial, true)]);
        let large = parts(ended(vec![target(2 << 20), target(1), target(2 << 20), target(5 << 20)]));
        let (running, over) = ((v1::RolloutState::Running, false), (v1::RolloutState::Partial, true));
        assert_eq!(large, [(2, running.0, running.1), (1, running.0, running.1), (1, over.0, over.1)]);
    }
}
