-- Everything in this database, with who may do what and who owns it; objects that nobody has touched have what PostgreSQL
-- gives by default, and those that nobody may use at all have one row without rights. What extensions made is not here,
-- nor is the schema public, unless $1 owns it: whoever makes a database makes these.
WITH owner AS (
    SELECT oid FROM pg_roles WHERE rolname = $1
), spaces AS (
    SELECT n.* FROM pg_namespace AS n WHERE n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'tenantd')
), extended AS (
    SELECT classid, objid FROM pg_depend WHERE deptype = 'e'
), relations AS (
    SELECT c.oid, c.relkind, c.relacl, c.relowner, format('%I.%I', s.nspname, c.relname) AS name
    FROM pg_class AS c JOIN spaces AS s ON s.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
        AND NOT EXISTS (SELECT FROM extended WHERE classid = 'pg_class'::regclass AND objid = c.oid)
), objects (kind, name, part, acl, owner) AS (
    SELECT 'SCHEMA', format('%I', s.nspname), NULL, coalesce(s.nspacl, acldefault('n', s.nspowner)), s.nspowner
    FROM spaces AS s CROSS JOIN owner
    WHERE (s.nspname <> 'public' OR s.nspowner = owner.oid)
        AND NOT EXISTS (SELECT FROM extended WHERE classid = 'pg_namespace'::regclass AND objid = s.oid)
    UNION ALL
    SELECT CASE r.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, r.name, NULL,
        coalesce(r.relacl, acldefault(CASE r.relkind WHEN 'S' THEN 's'::"char" ELSE 'r'::"char" END, r.relowner)),
        r.relowner
    FROM relations AS r
    UNION ALL
    SELECT 'COLUMN', r.name, format('%I', a.attname), a.attacl, r.relowner
    FROM relations AS r JOIN pg_attribute AS a ON a.attrelid = r.oid
    WHERE a.attacl IS NOT NULL AND NOT a.attisdropped
    UNION ALL
    -- GRANT knows nothing of an aggregate's ORDER BY.
    SELECT 'ROUTINE', format('%I.%I(%s)', s.nspname, p.proname,
            CASE p.prokind WHEN 'a' THEN oidvectortypes(p.proargtypes) ELSE pg_get_function_identity_arguments(p.oid) END),
        NULL, coalesce(p.proacl, acldefault('f', p.proowner)), p.proowner
    FROM pg_proc AS p JOIN spaces AS s ON s.oid = p.pronamespace
    -- What PostgreSQL makes for a range type, it makes as its own again.
    WHERE NOT EXISTS (SELECT FROM pg_depend
                      WHERE classid = 'pg_proc'::regclass AND objid = p.oid AND deptype IN ('e', 'i'))
    UNION ALL
    SELECT 'TYPE', format('%I.%I', s.nspname, t.typname), NULL, coalesce(t.typacl, acldefault('T', t.typowner)), t.typowner
    FROM pg_type AS t JOIN spaces AS s ON s.oid = t.typnamespace
    LEFT JOIN pg_class AS c ON c.oid = t.typrelid
    WHERE (t.typtype IN ('e', 'd', 'r') OR (t.typtype = 'c' AND c.relkind = 'c'))
        AND NOT EXISTS (SELECT FROM extended WHERE classid = 'pg_type'::regclass AND objid = t.oid)
    UNION ALL
    SELECT 'LARGE OBJECT', l.oid::text, NULL, coalesce(l.lomacl, acldefault('L', l.lomowner)), l.lomowner
    FROM pg_largeobject_metadata AS l CROSS JOIN owner
    -- There may be millions.
    WHERE l.lomacl IS NOT NULL OR l.lomowner <> owner.oid
    UNION ALL
    SELECT 'DEFAULT', k.word, NULL, coalesce(d.defaclacl, acldefault(k.acl_kind, owner.oid)), owner.oid
    FROM owner CROSS JOIN (VALUES
        ('r'::"char", 'r'::"char", 'TABLES'), ('S', 's', 'SEQUENCES'), ('f', 'f', 'ROUTINES'), ('T', 'T', 'TYPES'),
        ('n', 'n', 'SCHEMAS'),
        -- From PostgreSQL 18 on.
        ('L', 'L', 'LARGE OBJECTS')
    ) AS k (kind, acl_kind, word)
    LEFT JOIN pg_default_acl AS d
        ON d.defaclrole = owner.oid AND d.defaclnamespace = 0 AND d.defaclobjtype = k.kind
    UNION ALL
    SELECT 'DEFAULT', k.word, format('%I', s.nspname), d.defaclacl, owner.oid
    FROM pg_default_acl AS d JOIN owner ON owner.oid = d.defaclrole JOIN spaces AS s ON s.oid = d.defaclnamespace
    JOIN (VALUES ('r'::"char", 'TABLES'), ('S', 'SEQUENCES'), ('f', 'ROUTINES'), ('T', 'TYPES')) AS k (kind, word)
        ON k.kind = d.defaclobjtype
)
SELECT o.kind, o.name, o.part, g.rolname::text AS grantee, coalesce(a.is_grantable, false),
    coalesce(array_agg(a.privilege_type ORDER BY a.privilege_type COLLATE "C") FILTER (WHERE a.grantee IS NOT NULL), '{}')
        AS rights,
    w.rolname::text AS owner
FROM objects AS o LEFT JOIN pg_roles AS w ON w.oid = o.owner
LEFT JOIN LATERAL aclexplode(o.acl) AS a ON true LEFT JOIN pg_roles AS g ON g.oid = a.grantee
WHERE a.grantee IS NULL OR a.grantee = 0 OR g.oid IS NOT NULL
GROUP BY o.kind, o.name, o.part, w.rolname, g.rolname, a.is_grantable
UNION ALL
SELECT 'POLICY', r.name, format('%I', p.polname), g.rolname::text, false, '{}', w.rolname::text
FROM relations AS r JOIN pg_policy AS p ON p.polrelid = r.oid LEFT JOIN pg_roles AS w ON w.oid = r.relowner
CROSS JOIN LATERAL unnest(p.polroles) AS grantee LEFT JOIN pg_roles AS g ON g.oid = grantee
WHERE grantee = 0 OR g.oid IS NOT NULL
