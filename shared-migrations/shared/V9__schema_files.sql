-- Which migration files were applied to the tenant, up to its version: SHA-256 over versions, names and checksums. Two
-- tenants of one version may have got different files. NULL is not known yet: the next rollout looks at the database.

ALTER TABLE tenants ADD COLUMN schema_files_hash text;
