-- The audit log, by month. Rows that no month has been made for land in the default partition and are not lost.

CREATE TABLE audit_log (
    id uuid NOT NULL,
    occurred_at timestamptz NOT NULL DEFAULT now(),
    -- Who, as "api-key:ci" or a user's id.
    principal text NOT NULL,
    user_id uuid,
    tenant_id uuid,
    -- What, as "tenant.create".
    action text NOT NULL,
    resource_type text NOT NULL DEFAULT '',
    resource_id text NOT NULL DEFAULT '',
    outcome text NOT NULL CHECK (outcome IN ('DONE', 'DENIED', 'FAILED', 'DISCLOSED')),
    request_id uuid,
    ip_address inet,
    user_agent text,
    details jsonb NOT NULL DEFAULT '{}',
    -- The chain: each row's hash covers the hash before it.
    previous_hash bytea,
    hash bytea,
    PRIMARY KEY (occurred_at, id)
) PARTITION BY RANGE (occurred_at);

CREATE TABLE audit_log_default PARTITION OF audit_log DEFAULT;
CREATE INDEX audit_log_by_tenant ON audit_log (tenant_id, occurred_at DESC);
CREATE INDEX audit_log_by_principal ON audit_log (principal, occurred_at DESC);

-- Makes the partition of the month in which `moment` lies, by UTC, unless it is there.
CREATE FUNCTION audit_log_month_create(moment timestamptz) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    month_begin timestamp := date_trunc('month', moment AT TIME ZONE 'UTC');
    partition_name text := 'audit_log_' || to_char(month_begin, 'YYYY_MM');
BEGIN
    EXECUTE format(
        'CREATE TABLE IF NOT EXISTS %I PARTITION OF audit_log FOR VALUES FROM (%L) TO (%L)',
        partition_name, month_begin AT TIME ZONE 'UTC', (month_begin + interval '1 month') AT TIME ZONE 'UTC'
    );
    RETURN partition_name;
END $$;

SELECT audit_log_month_create(now()), audit_log_month_create(now() + interval '1 month');
