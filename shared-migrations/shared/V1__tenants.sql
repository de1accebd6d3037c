-- The catalog: one row per tenant, and what belongs to it. Only the daemon's own role reaches these tables.
-- Every change of a tenant takes the next number of catalog_meta.revision, whose row stays locked until the
-- transaction has ended: a reader that has seen revision n has seen everything up to n.

CREATE TABLE catalog_meta (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    catalog_id uuid NOT NULL DEFAULT gen_random_uuid(),
    revision bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now()
);
INSERT INTO catalog_meta DEFAULT VALUES;

CREATE TABLE servers (
    name text PRIMARY KEY,
    host text NOT NULL,
    port integer NOT NULL CHECK (port BETWEEN 1 AND 65535),
    registered_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE tenants (
    id uuid PRIMARY KEY,
    code text NOT NULL,
    name text NOT NULL,
    legal_name text,
    siret text,
    vat_number text,
    address jsonb,
    contact jsonb,
    settings jsonb NOT NULL DEFAULT '{}',
    flags jsonb NOT NULL DEFAULT '{}',
    tier text NOT NULL,
    tier_overrides jsonb NOT NULL DEFAULT '{}',
    state text NOT NULL
        CHECK (state IN ('PROVISIONING', 'ACTIVE', 'MAINTENANCE', 'SUSPENDED', 'DELETED', 'PURGED', 'FAILED')),
    suspend_reason text,
    server text NOT NULL CONSTRAINT tenants_server_known REFERENCES servers (name),
    database text NOT NULL,
    -- Grows when another database takes the tenant's place; part of the identity row in that database.
    generation bigint NOT NULL DEFAULT 1,
    schema_version bigint NOT NULL DEFAULT 0,
    schema_fingerprint text,
    -- Grows with every migration, restore, rename and rotation: older connections are dropped.
    epoch bigint NOT NULL DEFAULT 1,
    gate text NOT NULL DEFAULT 'OPEN' CHECK (gate IN ('OPEN', 'PAUSED', 'CLOSED')),
    gate_operation uuid,
    revision bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT tenants_pause_has_an_owner CHECK (gate <> 'PAUSED' OR gate_operation IS NOT NULL),
    CONSTRAINT tenants_open_has_no_owner CHECK (gate <> 'OPEN' OR gate_operation IS NULL)
);
-- A purged tenant is history: its code and its database's name are free again.
CREATE UNIQUE INDEX tenants_code_taken ON tenants (code) WHERE state <> 'PURGED';
CREATE UNIQUE INDEX tenants_database_taken ON tenants (server, database) WHERE state <> 'PURGED';
CREATE INDEX tenants_by_revision ON tenants (revision);

-- Subdomains and custom domains, whole and in lower case.
CREATE TABLE hosts (
    host text PRIMARY KEY CHECK (host = lower(host) AND host <> ''),
    tenant_id uuid NOT NULL REFERENCES tenants (id) ON DELETE CASCADE,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX hosts_by_tenant ON hosts (tenant_id);

CREATE TABLE sites (
    id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL REFERENCES tenants (id) ON DELETE CASCADE,
    code text NOT NULL,
    name text NOT NULL,
    address jsonb,
    is_primary boolean NOT NULL DEFAULT false,
    is_active boolean NOT NULL DEFAULT true,
    UNIQUE (tenant_id, code)
);
CREATE UNIQUE INDEX sites_one_primary ON sites (tenant_id) WHERE is_primary;

CREATE TABLE licenses (
    id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL REFERENCES tenants (id) ON DELETE CASCADE,
    license_key text NOT NULL UNIQUE,
    tier text NOT NULL,
    features jsonb NOT NULL DEFAULT '{}',
    users_max bigint NOT NULL CHECK (users_max >= 0),
    sites_max bigint NOT NULL CHECK (sites_max >= 0),
    valid_from date NOT NULL,
    valid_until date,
    is_active boolean NOT NULL DEFAULT true,
    CHECK (valid_until IS NULL OR valid_until >= valid_from)
);
CREATE INDEX licenses_by_tenant ON licenses (tenant_id);

-- A tenant's data key, wrapped under the key-encryption key, and what is sealed with it: passwords, backup identities.
CREATE TABLE tenant_data_keys (
    tenant_id uuid PRIMARY KEY REFERENCES tenants (id) ON DELETE CASCADE,
    wrapped_key bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE tenant_secrets (
    tenant_id uuid NOT NULL REFERENCES tenants (id) ON DELETE CASCADE,
    field text NOT NULL,
    version integer NOT NULL CHECK (version > 0),
    ciphertext bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, field, version)
);
