//! Makes a daemon stand still at one persisted write, by real means: a trigger on the catalog's tables waits for an
//! advisory lock that the test holds. The daemon's statement hangs in PostgreSQL; nothing in the daemon knows.

use tokio_postgres::Client;
use uuid::Uuid;

use super::{Fleet, until};

/// Triggers that wait at the points in `standstill.points`. `place` is the table, `name` the step, the target's code
/// or the operation's kind, `state` the state that is about to be written.
const INSTALL: &str = "
    CREATE SCHEMA standstill;
    CREATE TABLE standstill.points (request_id uuid, place text, name text, state text, key bigint);
    CREATE FUNCTION standstill.wait() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
    DECLARE
        new_row jsonb := to_jsonb(NEW);
        operation uuid := coalesce(new_row ->> 'operation_id', new_row ->> 'rollout_id', new_row ->> 'id');
        subject text := coalesce(new_row ->> 'name', new_row ->> 'code', new_row ->> 'kind');
        news text := CASE
            WHEN OLD.state IS DISTINCT FROM NEW.state THEN NEW.state
            WHEN to_jsonb(OLD) ->> 'error' IS NULL AND new_row ->> 'error' IS NOT NULL THEN 'FAILING' END;
        point bigint;
    BEGIN
        FOR point IN
            SELECT p.key FROM standstill.points p JOIN public.operations o USING (request_id)
            WHERE o.id = operation AND p.place = TG_TABLE_NAME AND p.name = subject AND p.state = news
        LOOP
            PERFORM pg_advisory_xact_lock_shared(point);
        END LOOP;
        RETURN NEW;
    END $$;
    CREATE TRIGGER standstill BEFORE UPDATE ON public.operation_steps FOR EACH ROW EXECUTE FUNCTION standstill.wait();
    CREATE TRIGGER standstill BEFORE UPDATE ON public.operations FOR EACH ROW EXECUTE FUNCTION standstill.wait();
    CREATE TRIGGER standstill BEFORE UPDATE ON public.rollout_targets FOR EACH ROW EXECUTE FUNCTION standstill.wait();
";

/// The judge's session in the shared database, which holds the locks.
pub struct Standstills {
    judge: Client,
}

/// One point where a daemon will stand still.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Point {
    /// `operation_steps`, `operations` or `rollout_targets`.
    pub place: &'static str,
    /// The step, the operation's kind, or the target's code.
    pub name: String,
    /// The state that is about to be written, or `FAILING` when an operation's error is.
    pub state: &'static str,
}

impl Point {
    /// Where a daemon takes an operation.
    pub fn is_claim(&self) -> bool {
        self.place == "operations" && self.state == "RUNNING"
    }
}

/// A point that is armed for one operation.
#[derive(Debug, Clone, Copy)]
pub struct Armed {
    key: i64,
}

impl Standstills {
    pub async fn install(fleet: &Fleet) -> Self {
        let judge = fleet.judge(fleet.naming.shared_database().as_str()).await;
        judge.batch_execute(INSTALL).await.unwrap();
        Self { judge }
    }

    /// Arms the beginning of a step, for the operation that will be made with the request id that comes with it.
    pub async fn arm_step(&self, name: &str) -> (Uuid, Armed) {
        let request = Uuid::new_v4();
        let point = Point { place: "operation_steps", name: name.to_owned(), state: "RUNNING" };
        (request, self.arm(request, &point).await)
    }

    /// Arms a point for the operation that will be made with this request id.
    pub async fn arm(&self, request: Uuid, point: &Point) -> Armed {
        let key = i64::try_from(request.as_u128() >> 66).unwrap();
        self.judge.execute("SELECT pg_advisory_lock($1)", &[&key]).await.unwrap();
        self.judge
            .execute(
                "INSERT INTO standstill.points VALUES ($1, $2, $3, $4, $5)",
                &[&request, &point.place, &point.name, &point.state, &key],
            )
            .await
            .unwrap();
        Armed { key }
    }

    /// Waits until a session stands at the point; its backend's process id.
    pub async fn reached(&self, armed: Armed) -> i32 {
        let query = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
            AND ((classid::bigint << 32) | objid::bigint) = $1";
        until("a session stands still at the armed point", || async {
            self.judge.query_opt(query, &[&armed.key]).await.unwrap().map(|row| row.get(0))
        })
        .await
    }

    /// Ends the session that stands there: what it was about to write is not written.
    pub async fn cut(&self, armed: Armed, backend: i32) {
        self.judge.execute("SELECT pg_terminate_backend($1)", &[&backend]).await.unwrap();
        self.gone(backend).await;
        self.release(armed).await;
    }

    /// Lets the write happen, whoever is there to hear of it, and waits until its session is gone.
    pub async fn let_go(&self, armed: Armed, backend: i32) {
        self.release(armed).await;
        self.gone(backend).await;
    }

    /// Lets the daemon go on, alive.
    pub async fn pass(&self, armed: Armed) {
        self.release(armed).await;
    }

    async fn release(&self, armed: Armed) {
        self.judge.execute("DELETE FROM standstill.points WHERE key = $1", &[&armed.key]).await.unwrap();
        self.judge.execute("SELECT pg_advisory_unlock($1)", &[&armed.key]).await.unwrap();
    }

    async fn gone(&self, backend: i32) {
        until("the daemon's session is gone", || async {
            let row = self.judge.query_opt("SELECT FROM pg_stat_activity WHERE pid = $1", &[&backend]).await.unwrap();
            row.is_none().then_some(())
        })
        .await;
    }
}
