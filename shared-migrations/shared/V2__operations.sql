-- Long-running changes, persisted step by step. A claim is a lease with a fence: every write of the engine names the
-- fence that it was claimed with, and a later claim has a higher one.

CREATE TABLE operations (
    -- A UUID of version 7, so that the newest is the greatest.
    id uuid PRIMARY KEY,
    kind text NOT NULL,
    -- No reference: an operation outlives the tenant whose creation it undid.
    tenant_id uuid,
    tenant_code text,
    request_id uuid NOT NULL CONSTRAINT operations_request_id_taken UNIQUE,
    request_hash bytea NOT NULL,
    created_by text NOT NULL,
    input jsonb NOT NULL,
    state text NOT NULL DEFAULT 'PENDING'
        CHECK (state IN ('PENDING', 'RUNNING', 'SUCCEEDED', 'FAILED', 'CANCELLED', 'STUCK')),
    result jsonb,
    error jsonb,
    fence bigint NOT NULL DEFAULT 0,
    lease_owner uuid,
    lease_until timestamptz,
    -- Whose lease ran out before the present claim.
    lease_owner_before uuid,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    ended_at timestamptz
);
-- Operations on one tenant exclude each other.
CREATE UNIQUE INDEX operations_one_per_tenant ON operations (tenant_id)
    WHERE state IN ('PENDING', 'RUNNING', 'STUCK');
CREATE INDEX operations_due ON operations (created_at) WHERE state IN ('PENDING', 'RUNNING');
CREATE INDEX operations_by_tenant ON operations (tenant_id, id);

CREATE TABLE operation_steps (
    operation_id uuid NOT NULL REFERENCES operations (id) ON DELETE CASCADE,
    ordinal integer NOT NULL,
    name text NOT NULL,
    state text NOT NULL DEFAULT 'PENDING'
        CHECK (state IN ('PENDING', 'RUNNING', 'DONE', 'UNDOING', 'UNDONE', 'FAILED')),
    attempts integer NOT NULL DEFAULT 0,
    output jsonb,
    detail text NOT NULL DEFAULT '',
    started_at timestamptz,
    ended_at timestamptz,
    PRIMARY KEY (operation_id, ordinal)
);
