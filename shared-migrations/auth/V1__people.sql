-- Who may do what: people, their roles in tenants, and what a role may do.

CREATE TABLE users (
    id uuid PRIMARY KEY,
    -- In lower case: one mailbox is one user.
    email text NOT NULL UNIQUE CHECK (email = lower(email) AND email <> ''),
    -- Of a slow hash; NULL for people who have not chosen a password, or sign in elsewhere.
    password_hash text,
    first_name text NOT NULL DEFAULT '',
    last_name text NOT NULL DEFAULT '',
    is_active boolean NOT NULL DEFAULT true,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE roles (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    name text NOT NULL UNIQUE,
    description text NOT NULL DEFAULT '',
    -- Cannot be changed or deleted by people.
    is_system boolean NOT NULL DEFAULT false
);

CREATE TABLE permissions (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    -- As "articles.write".
    name text NOT NULL UNIQUE,
    description text NOT NULL DEFAULT ''
);

CREATE TABLE role_permissions (
    role_id uuid NOT NULL REFERENCES roles (id) ON DELETE CASCADE,
    permission_id uuid NOT NULL REFERENCES permissions (id) ON DELETE CASCADE,
    PRIMARY KEY (role_id, permission_id)
);

-- A role has everything that the roles below it have.
CREATE TABLE role_hierarchy (
    role_id uuid NOT NULL REFERENCES roles (id) ON DELETE CASCADE,
    inherits_role_id uuid NOT NULL REFERENCES roles (id) ON DELETE CASCADE,
    PRIMARY KEY (role_id, inherits_role_id),
    CHECK (role_id <> inherits_role_id)
);

INSERT INTO roles (name, description, is_system) VALUES
    ('OWNER', 'Everything in the tenant, its administrators included', true),
    ('ADMIN', 'Everything in the tenant but its owner', true),
    ('MANAGER', 'Reads and writes, and approves', true),
    ('USER', 'Reads and writes', true),
    ('VIEWER', 'Reads', true);
INSERT INTO role_hierarchy (role_id, inherits_role_id)
    SELECT upper_role.id, lower_role.id
    FROM (VALUES ('OWNER', 'ADMIN'), ('ADMIN', 'MANAGER'), ('MANAGER', 'USER'), ('USER', 'VIEWER')) AS pair (above, below)
    JOIN roles AS upper_role ON upper_role.name = pair.above
    JOIN roles AS lower_role ON lower_role.name = pair.below;

-- One role for a person in a tenant. The tenant is in the shared database, so there is no reference.
CREATE TABLE user_tenant_roles (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    tenant_id uuid NOT NULL,
    role_id uuid NOT NULL REFERENCES roles (id),
    is_active boolean NOT NULL DEFAULT true,
    granted_at timestamptz NOT NULL DEFAULT now(),
    granted_by uuid REFERENCES users (id) ON DELETE SET NULL,
    expires_at timestamptz,
    UNIQUE (user_id, tenant_id)
);
CREATE INDEX user_tenant_roles_by_tenant ON user_tenant_roles (tenant_id) WHERE is_active;
