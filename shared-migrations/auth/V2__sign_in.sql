-- How people prove who they are, and for how long that holds. Tokens and codes are kept as hashes, secrets sealed.

CREATE TABLE sessions (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    tenant_id uuid,
    token_hash bytea NOT NULL UNIQUE,
    ip_address inet,
    user_agent text,
    created_at timestamptz NOT NULL DEFAULT now(),
    last_seen_at timestamptz,
    expires_at timestamptz NOT NULL,
    revoked_at timestamptz
);
CREATE INDEX sessions_active ON sessions (user_id) WHERE revoked_at IS NULL;
CREATE INDEX sessions_active_by_tenant ON sessions (tenant_id) WHERE revoked_at IS NULL;

CREATE TABLE refresh_tokens (
    id uuid PRIMARY KEY,
    session_id uuid NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    token_hash bytea NOT NULL UNIQUE,
    -- A token that is used again after its successor was given out has been stolen.
    replaced_by uuid REFERENCES refresh_tokens (id) ON DELETE SET NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    used_at timestamptz,
    revoked_at timestamptz
);
CREATE INDEX refresh_tokens_active ON refresh_tokens (session_id) WHERE revoked_at IS NULL AND used_at IS NULL;

-- Signed tokens that must not be taken any more, until they would have expired by themselves.
CREATE TABLE revoked_tokens (
    jti uuid PRIMARY KEY,
    user_id uuid REFERENCES users (id) ON DELETE CASCADE,
    reason text NOT NULL DEFAULT '',
    revoked_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL
);
CREATE INDEX revoked_tokens_by_expiry ON revoked_tokens (expires_at);

CREATE TABLE mfa_secrets (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    method text NOT NULL CHECK (method IN ('totp', 'webauthn', 'sms')),
    secret_sealed bytea NOT NULL,
    is_enabled boolean NOT NULL DEFAULT false,
    verified_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (user_id, method)
);

CREATE TABLE mfa_recovery_codes (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    code_hash bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    used_at timestamptz,
    UNIQUE (user_id, code_hash)
);
CREATE INDEX mfa_recovery_codes_left ON mfa_recovery_codes (user_id) WHERE used_at IS NULL;

CREATE TABLE identity_providers (
    id uuid PRIMARY KEY,
    tenant_id uuid,
    name text NOT NULL,
    protocol text NOT NULL CHECK (protocol IN ('oidc', 'saml')),
    issuer text NOT NULL,
    client_id text,
    client_secret_sealed bytea,
    settings jsonb NOT NULL DEFAULT '{}',
    is_active boolean NOT NULL DEFAULT true,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX identity_providers_of_tenant ON identity_providers (tenant_id, name) WHERE tenant_id IS NOT NULL;
CREATE UNIQUE INDEX identity_providers_of_all ON identity_providers (name) WHERE tenant_id IS NULL;

CREATE TABLE user_identities (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    provider_id uuid NOT NULL REFERENCES identity_providers (id) ON DELETE CASCADE,
    subject text NOT NULL,
    email text,
    linked_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (provider_id, subject)
);
CREATE INDEX user_identities_by_user ON user_identities (user_id);

CREATE TABLE sso_sessions (
    id uuid PRIMARY KEY,
    identity_id uuid NOT NULL REFERENCES user_identities (id) ON DELETE CASCADE,
    session_id uuid REFERENCES sessions (id) ON DELETE SET NULL,
    provider_session text,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    revoked_at timestamptz
);
CREATE INDEX sso_sessions_active ON sso_sessions (identity_id) WHERE revoked_at IS NULL;

CREATE TABLE login_attempts (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- As it was typed: there may be no such user.
    email text NOT NULL,
    user_id uuid REFERENCES users (id) ON DELETE SET NULL,
    ip_address inet,
    user_agent text,
    succeeded boolean NOT NULL,
    failure_reason text,
    attempted_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX login_attempts_failed_by_email ON login_attempts (email, attempted_at) WHERE NOT succeeded;
CREATE INDEX login_attempts_failed_by_address ON login_attempts (ip_address, attempted_at) WHERE NOT succeeded;
