-- What a tenant's own login may read here. Policies compare session_user, which no statement can change, never a
-- setting; the rights themselves are given by the daemon, because the role's name begins with the fleet's prefix.

-- Whose a login is. Written before the login gets in.
CREATE TABLE tenant_logins (
    login name PRIMARY KEY,
    tenant_id uuid NOT NULL REFERENCES tenants (id) ON DELETE CASCADE
);
CREATE INDEX tenant_logins_by_tenant ON tenant_logins (tenant_id);

ALTER TABLE tenant_logins ENABLE ROW LEVEL SECURITY;
ALTER TABLE tenants ENABLE ROW LEVEL SECURITY;
ALTER TABLE hosts ENABLE ROW LEVEL SECURITY;
ALTER TABLE sites ENABLE ROW LEVEL SECURITY;
ALTER TABLE licenses ENABLE ROW LEVEL SECURITY;
ALTER TABLE system_parameters ENABLE ROW LEVEL SECURITY;
ALTER TABLE menus ENABLE ROW LEVEL SECURITY;

-- A policy reads tenant_logins with the reader's own rights, so the first policy holds in the others too.
CREATE POLICY own_login ON tenant_logins FOR SELECT USING (login = session_user);
CREATE POLICY own_row ON tenants FOR SELECT
    USING (id = (SELECT l.tenant_id FROM tenant_logins l WHERE l.login = session_user));
CREATE POLICY own_rows ON hosts FOR SELECT
    USING (tenant_id = (SELECT l.tenant_id FROM tenant_logins l WHERE l.login = session_user));
CREATE POLICY own_rows ON sites FOR SELECT
    USING (tenant_id = (SELECT l.tenant_id FROM tenant_logins l WHERE l.login = session_user));
CREATE POLICY own_rows ON licenses FOR SELECT
    USING (tenant_id = (SELECT l.tenant_id FROM tenant_logins l WHERE l.login = session_user));
CREATE POLICY everybodys_rows ON system_parameters FOR SELECT USING (true);
CREATE POLICY everybodys_rows ON menus FOR SELECT USING (true);
