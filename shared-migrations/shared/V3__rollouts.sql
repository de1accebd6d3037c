-- Fleet migrations. A rollout keeps its files' texts, and resumes from those whatever the directory holds by then.

CREATE TABLE rollouts (
    -- Also the id of the operation that drives it.
    id uuid PRIMARY KEY REFERENCES operations (id),
    files jsonb NOT NULL,
    directory_hash text NOT NULL,
    target_version bigint NOT NULL,
    failures_max integer NOT NULL CHECK (failures_max >= 0),
    state text NOT NULL DEFAULT 'RUNNING'
        CHECK (state IN ('RUNNING', 'SUCCEEDED', 'PARTIAL', 'HALTED', 'FAILED')),
    error text,
    created_at timestamptz NOT NULL DEFAULT now(),
    ended_at timestamptz
);

CREATE TABLE rollout_targets (
    rollout_id uuid NOT NULL REFERENCES rollouts (id) ON DELETE CASCADE,
    tenant_id uuid NOT NULL,
    code text NOT NULL,
    state text NOT NULL DEFAULT 'PENDING'
        CHECK (state IN ('PENDING', 'RUNNING', 'MIGRATED', 'FAILED', 'SKIPPED', 'AHEAD', 'CURRENT')),
    from_version bigint NOT NULL,
    to_version bigint,
    applied integer NOT NULL DEFAULT 0,
    error text,
    sqlstate text,
    started_at timestamptz,
    ended_at timestamptz,
    PRIMARY KEY (rollout_id, tenant_id)
);
CREATE INDEX rollout_targets_by_state ON rollout_targets (rollout_id, state, code);
