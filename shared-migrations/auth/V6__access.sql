-- What a daemon has to know of callers, and how it hears of changes.

ALTER TABLE api_key_roles DROP CONSTRAINT api_key_roles_role_check;
ALTER TABLE api_key_roles ADD CONSTRAINT api_key_roles_role_check
    CHECK (role IN ('viewer', 'resolver', 'user', 'migrator', 'backup', 'operator', 'admin'));

-- The tenant that the key's calls mean when nothing else says one.
ALTER TABLE api_keys ADD COLUMN default_tenant text;

CREATE INDEX sso_sessions_by_provider ON sso_sessions (identity_id, provider_session);

-- Daemons keep what they have read for some seconds. Whoever changes a row here, with whatever program, makes them
-- forget it: the payload is the kind of thing that changed, and its id.
CREATE FUNCTION access_notify() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    changed record;
BEGIN
    IF TG_OP = 'DELETE' THEN
        changed := OLD;
    ELSE
        changed := NEW;
    END IF;
    PERFORM pg_notify('tenantd_access', TG_ARGV[0] || ' ' || coalesce(to_jsonb(changed) ->> TG_ARGV[1], ''));
    RETURN NULL;
END $$;

CREATE TRIGGER access_notify AFTER UPDATE OF revoked_at, expires_at, all_tenants, default_tenant OR DELETE ON api_keys
    FOR EACH ROW EXECUTE FUNCTION access_notify('key', 'id');
CREATE TRIGGER access_notify AFTER INSERT OR UPDATE OR DELETE ON api_key_roles
    FOR EACH ROW EXECUTE FUNCTION access_notify('key', 'api_key_id');
CREATE TRIGGER access_notify AFTER INSERT OR UPDATE OR DELETE ON api_key_tenants
    FOR EACH ROW EXECUTE FUNCTION access_notify('key', 'api_key_id');
CREATE TRIGGER access_notify AFTER INSERT ON revoked_tokens
    FOR EACH ROW EXECUTE FUNCTION access_notify('token', 'jti');
CREATE TRIGGER access_notify AFTER UPDATE OF is_active OR DELETE ON users
    FOR EACH ROW EXECUTE FUNCTION access_notify('user', 'id');
CREATE TRIGGER access_notify AFTER INSERT OR UPDATE OR DELETE ON user_tenant_roles
    FOR EACH ROW EXECUTE FUNCTION access_notify('user', 'user_id');
CREATE TRIGGER access_notify AFTER UPDATE OF revoked_at, expires_at, tenant_id OR DELETE ON sessions
    FOR EACH ROW EXECUTE FUNCTION access_notify('user', 'user_id');
CREATE TRIGGER access_notify AFTER INSERT OR DELETE ON user_identities
    FOR EACH ROW EXECUTE FUNCTION access_notify('user', 'user_id');
-- Nothing here says whose they are.
CREATE TRIGGER access_notify AFTER UPDATE OF revoked_at, expires_at OR DELETE ON sso_sessions
    FOR EACH ROW EXECUTE FUNCTION access_notify('all', 'id');
CREATE TRIGGER access_notify AFTER UPDATE OF is_active, issuer, tenant_id OR DELETE ON identity_providers
    FOR EACH ROW EXECUTE FUNCTION access_notify('all', 'id');
