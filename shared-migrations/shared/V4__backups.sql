-- Backups, and databases that a restore has replaced. No references to tenants: a backup outlives its tenant.

CREATE TABLE backups (
    -- A UUID of version 7, so that the newest is the greatest.
    id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL,
    tenant_code text NOT NULL,
    operation_id uuid NOT NULL,
    state text NOT NULL DEFAULT 'RUNNING' CHECK (state IN ('RUNNING', 'COMPLETE')),
    archive_key text NOT NULL,
    manifest_key text NOT NULL,
    -- Set before the first part is sent, so that recovery can abort the upload in any store.
    upload_id text,
    manifest jsonb,
    created_at timestamptz NOT NULL DEFAULT now(),
    completed_at timestamptz,
    verified_at timestamptz,
    CONSTRAINT backups_complete_have_a_manifest CHECK (state <> 'COMPLETE' OR (manifest IS NOT NULL AND completed_at IS NOT NULL))
);
CREATE INDEX backups_by_tenant ON backups (tenant_id, id);
CREATE INDEX backups_running ON backups (operation_id) WHERE state = 'RUNNING';

CREATE TABLE retired_databases (
    server text NOT NULL,
    database text NOT NULL,
    tenant_id uuid NOT NULL,
    operation_id uuid NOT NULL,
    retired_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (server, database)
);
