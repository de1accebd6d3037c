-- Rollouts that pause each tenant while they migrate it.

ALTER TABLE rollouts ADD COLUMN pause boolean NOT NULL DEFAULT false;

-- The logins that the rollout locked when it paused the tenant, an array of their kinds: those are unlocked afterwards,
-- and no others. Of meaning only while the tenant's gate is paused by this rollout.
ALTER TABLE rollout_targets ADD COLUMN locked_logins jsonb;
