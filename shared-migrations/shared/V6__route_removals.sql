-- Tenants whose row has gone, as when their creation was undone: whoever follows the catalog by revision hears of it.
-- Only so many are kept; who has seen less than catalog_meta.compacted_revision must read everything anew.

CREATE TABLE tenant_removals (
    tenant_id uuid PRIMARY KEY,
    code text NOT NULL,
    revision bigint NOT NULL,
    removed_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX tenant_removals_by_revision ON tenant_removals (revision);

ALTER TABLE catalog_meta ADD COLUMN compacted_revision bigint NOT NULL DEFAULT 0;
