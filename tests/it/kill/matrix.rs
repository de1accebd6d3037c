//! The matrix: the points where a daemon is killed, taken from an undisturbed run, and what must hold afterwards.

use std::collections::BTreeMap;

use tenantd::proto::v1::{Operation, OperationState, OperationStepState};
use tonic::{Code, Status};
use uuid::Uuid;

use super::scenario::{Kind, Scenario};
use crate::harness::{Armed, Client, Leftovers, Point, Standstills, until};

/// Cases that share one kill: each operation stands at a point of its own, and holds one of the catalog's sessions.
const CASES_PER_KILL: usize = 3;

/// When the daemon dies, seen from one persisted write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Instant {
    /// What was about to be written is not written.
    Before,
    /// It is written, and nobody hears of it.
    After,
}

#[derive(Debug, Clone)]
struct Case {
    point: Point,
    instant: Instant,
}

/// How an undisturbed run ends, and what it leaves.
struct Undisturbed {
    state: OperationState,
    left: BTreeMap<String, i64>,
}

/// Kills a daemon at every point of an operation of this kind.
pub async fn run(kind: Kind) {
    let mut scenario = Scenario::new(kind).await;
    let (operation, undisturbed) = undisturbed(&mut scenario).await;
    let cases = cases(&operation);
    assert!(cases.len() >= 3 * operation.steps.len(), "three instants for each step: {cases:#?}");
    scenario.provide(cases.len()).await;
    let standstills = Standstills::install(&scenario.fleet).await;
    // While a claim stands still, the daemon claims nothing else.
    let (claims, others): (Vec<_>, Vec<_>) = cases.into_iter().partition(|case| case.point.is_claim());
    for cases in claims.chunks(1).chain(others.chunks(CASES_PER_KILL)) {
        kill(&mut scenario, &standstills, cases, &undisturbed).await;
    }
    scenario.finish().await;
}

/// Lets a daemon stand still (SIGSTOP) at every point of an operation of this kind, until another one has driven it to
/// its end; then it wakes, and must change nothing.
pub async fn run_hung(kind: Kind) {
    let mut scenario = Scenario::of_two(kind).await;
    let (operation, undisturbed) = undisturbed(&mut scenario).await;
    let (claims, others): (Vec<_>, Vec<_>) = cases(&operation).into_iter().partition(|case| case.point.is_claim());
    scenario.provide(claims.len() + others.len()).await;
    let standstills = Standstills::install(&scenario.fleet).await;
    for cases in claims.chunks(1).chain(others.chunks(CASES_PER_KILL)) {
        hang(&mut scenario, &standstills, cases, &undisturbed).await;
    }
    scenario.finish().await;
}

async fn undisturbed(scenario: &mut Scenario) -> (Operation, Undisturbed) {
    scenario.provide(1).await;
    let subject = scenario.subject().await;
    let before = scenario.fleet.inventory().await;
    let operation = scenario.begin(&subject, Uuid::new_v4()).await;
    let ended = scenario.client().ended(&operation).await;
    scenario.verify(&subject, &ended).await;
    let left = scenario.fleet.inventory().await.since(&before);
    assert!(ended.state() == OperationState::Succeeded || left.is_empty(), "{ended:#?} left\n{left}");
    assert_eq!(ended.state() == OperationState::Succeeded, scenario.kind.succeeds(), "{ended:#?}");
    let undisturbed = Undisturbed { state: ended.state(), left: left.lasting() };
    (ended, undisturbed)
}

/// Three instants for each step and for its undo, if it was undone; the claim and the end of the operation itself; for
/// a rollout, its one target.
fn cases(operation: &Operation) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut writes = |place: &'static str, name: &str, states: &[&'static str]| {
        for state in states {
            let point = Point { place, name: name.to_owned(), state };
            cases.push(Case { point: point.clone(), instant: Instant::Before });
            // After one write is before the next, so the end of a stretch is all that is left.
            if Some(state) == states.last() {
                cases.push(Case { point, instant: Instant::After });
            }
        }
    };
    writes("operations", &operation.kind, &["RUNNING"]);
    for step in &operation.steps {
        match step.state() {
            OperationStepState::Done => writes("operation_steps", &step.name, &["RUNNING", "DONE"]),
            OperationStepState::Undone => writes("operation_steps", &step.name, &["UNDOING", "UNDONE"]),
            OperationStepState::Pending => {}
            other => panic!("the step {} ended as {other:?}", step.name),
        }
    }
    if operation.kind == "migrate_fleet" {
        writes("rollout_targets", "", &["RUNNING", "MIGRATED"]);
    }
    let end: &[&'static str] =
        if operation.state() == OperationState::Succeeded { &["SUCCEEDED"] } else { &["FAILING", "FAILED"] };
    writes("operations", &operation.kind, end);
    cases
}

/// One kill, several operations, each at its own point.
async fn kill(scenario: &mut Scenario, standstills: &Standstills, cases: &[Case], undisturbed: &Undisturbed) {
    let subjects = subjects(scenario, cases).await;
    let before = scenario.fleet.inventory().await;
    let standing = begin(scenario, standstills, cases, &subjects).await;
    scenario.kill();
    let operations = let_go(standstills, cases, standing).await;
    scenario.restart();
    let mut expected: BTreeMap<String, i64> = BTreeMap::new();
    for ((operation, subject), case) in operations.iter().zip(&subjects).zip(cases) {
        let ended = scenario.client().ended(operation).await;
        let allowed = [undisturbed.state, OperationState::Failed];
        assert!(allowed.contains(&ended.state()), "killed at {case:?}: {ended:#?}");
        scenario.verify(subject, &ended).await;
        if ended.state() == OperationState::Succeeded {
            for (what, count) in &undisturbed.left {
                *expected.entry(what.clone()).or_default() += count;
            }
        }
    }
    let left = scenario.fleet.inventory().await.since(&before);
    assert_eq!(left.lasting(), expected, "after kills at {cases:#?} there are\n{left}");
}

/// The daemon stands still with several operations, each at its own point; the other one drives them; it goes on.
async fn hang(scenario: &mut Scenario, standstills: &Standstills, cases: &[Case], undisturbed: &Undisturbed) {
    let subjects = subjects(scenario, cases).await;
    let before = scenario.fleet.inventory().await;
    scenario.other().pause();
    let standing = begin(scenario, standstills, cases, &subjects).await;
    scenario.process().pause();
    let mut operations = Vec::new();
    for (case, (operation, armed, backend)) in cases.iter().zip(standing) {
        match case.instant {
            Instant::Before => standstills.cut(armed, backend).await,
            // The session stays, until whoever takes over ends it.
            Instant::After => standstills.pass(armed).await,
        }
        operations.push(operation);
    }
    scenario.other().resume();
    let mut ended = Vec::new();
    for operation in &operations {
        ended.push(scenario.other().client.ended(operation).await);
    }
    let left = lasting(&scenario.fleet.inventory().await.since(&before));
    scenario.process().resume();
    for ((ended, subject), case) in ended.iter().zip(&subjects).zip(cases) {
        let allowed = [undisturbed.state, OperationState::Failed];
        assert!(allowed.contains(&ended.state()), "hung at {case:?}: {ended:#?}");
        // By the one that was overtaken, so that it is awake.
        assert_eq!(scenario.client().ended(&ended.operation_id).await, *ended, "hung at {case:?}");
        serves(&scenario.client(), subject).await;
        scenario.verify(subject, ended).await;
    }
    let now = scenario.fleet.inventory().await.since(&before);
    assert_eq!(lasting(&now), left, "after it stood still at {cases:#?} there are\n{now}");
}

/// Without who has a share of the budget: one that stands still for long has none, and then it has again.
fn lasting(left: &Leftovers) -> BTreeMap<String, i64> {
    left.lasting().into_iter().filter(|(table, _)| table != "shared.budget_shares").collect()
}

/// Waits until a daemon that was asleep has its share back, and its sessions.
async fn serves(client: &Client, tenant: &str) {
    let is_away = |error: &Status| error.code() == Code::Unavailable;
    until("the woken daemon serves", || async {
        let (got, read) = (client.tenant_get(tenant).await, client.execute(tenant, "SELECT 1").await);
        let away = got.as_ref().is_err_and(is_away) || read.as_ref().is_err_and(is_away);
        (!away).then_some(())
    })
    .await;
}

async fn subjects(scenario: &mut Scenario, cases: &[Case]) -> Vec<String> {
    let mut subjects = Vec::new();
    for _ in cases {
        subjects.push(scenario.subject().await);
    }
    subjects
}

/// An operation, where its daemon stands, and in which backend.
type Standing = (String, Armed, i32);

/// Begins an operation for each case, and waits until all stand where they shall.
async fn begin(scenario: &Scenario, standstills: &Standstills, cases: &[Case], subjects: &[String]) -> Vec<Standing> {
    let mut standing = Vec::new();
    for (case, subject) in cases.iter().zip(subjects) {
        let (request, mut point) = (Uuid::new_v4(), case.point.clone());
        if point.name.is_empty() {
            point.name.clone_from(subject);
        }
        let armed = standstills.arm(request, &point).await;
        let operation = scenario.begin(subject, request).await;
        standing.push((operation, armed, standstills.reached(armed).await));
    }
    standing
}

/// What was about to be written is, or is not. The operations' ids.
async fn let_go(standstills: &Standstills, cases: &[Case], standing: Vec<Standing>) -> Vec<String> {
    let mut operations = Vec::new();
    for (case, (operation, armed, backend)) in cases.iter().zip(standing) {
        match case.instant {
            Instant::Before => standstills.cut(armed, backend).await,
            Instant::After => standstills.let_go(armed, backend).await,
        }
        operations.push(operation);
    }
    operations
}
