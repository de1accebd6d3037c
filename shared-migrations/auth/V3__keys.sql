-- Keys for programs. A key's secret has more entropy than can be guessed, so that a plain SHA-256 of it is enough.

CREATE TABLE api_keys (
    -- A UUID of version 7, so that the newest is the greatest.
    id uuid PRIMARY KEY,
    name text NOT NULL CHECK (name <> ''),
    key_hash bytea NOT NULL UNIQUE CHECK (length(key_hash) = 32),
    -- False: only the tenants in api_key_tenants, and none when there is none.
    all_tenants boolean NOT NULL,
    created_by text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    revoked_at timestamptz,
    last_used_at timestamptz
);
CREATE INDEX api_keys_active ON api_keys (id) WHERE revoked_at IS NULL;

CREATE TABLE api_key_roles (
    api_key_id uuid NOT NULL REFERENCES api_keys (id) ON DELETE CASCADE,
    -- One of the daemon's roles for callers, not of a tenant's roles for people.
    role text NOT NULL CHECK (role IN ('viewer', 'resolver', 'migrator', 'backup', 'operator', 'admin')),
    PRIMARY KEY (api_key_id, role)
);

-- The codes of the tenants that a key may reach when it may not reach all.
CREATE TABLE api_key_tenants (
    api_key_id uuid NOT NULL REFERENCES api_keys (id) ON DELETE CASCADE,
    tenant_code text NOT NULL,
    PRIMARY KEY (api_key_id, tenant_code)
);

CREATE TABLE api_key_usage (
    api_key_id uuid NOT NULL REFERENCES api_keys (id) ON DELETE CASCADE,
    day date NOT NULL,
    calls bigint NOT NULL DEFAULT 0 CHECK (calls >= 0),
    failures bigint NOT NULL DEFAULT 0 CHECK (failures >= 0),
    PRIMARY KEY (api_key_id, day)
);
