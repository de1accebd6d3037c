-- Switches: a default for everybody, and exceptions. The narrowest wins: user, then role, then tenant, then default.

CREATE TABLE features (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    name text NOT NULL UNIQUE,
    description text NOT NULL DEFAULT '',
    enabled_by_default boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE feature_flags_tenant (
    feature_id uuid NOT NULL REFERENCES features (id) ON DELETE CASCADE,
    tenant_id uuid NOT NULL,
    is_enabled boolean NOT NULL,
    PRIMARY KEY (feature_id, tenant_id)
);

CREATE TABLE feature_flags_role (
    feature_id uuid NOT NULL REFERENCES features (id) ON DELETE CASCADE,
    role_id uuid NOT NULL REFERENCES roles (id) ON DELETE CASCADE,
    is_enabled boolean NOT NULL,
    PRIMARY KEY (feature_id, role_id)
);

CREATE TABLE feature_flags_user (
    feature_id uuid NOT NULL REFERENCES features (id) ON DELETE CASCADE,
    user_id uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    is_enabled boolean NOT NULL,
    PRIMARY KEY (feature_id, user_id)
);
