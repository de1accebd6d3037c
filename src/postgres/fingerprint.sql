WITH spaces AS (
    SELECT oid, nspname AS schema FROM pg_namespace
    WHERE nspname !~ '^pg_' AND nspname NOT IN ('information_schema', 'tenantd')
), extended AS (
    SELECT classid, objid FROM pg_depend WHERE deptype = 'e'
), relations AS (
    SELECT c.*, s.schema FROM pg_class AS c JOIN spaces AS s ON s.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S', 'c')
        AND (s.schema, c.relname) <> ('public', 'refinery_schema_history')
        AND NOT EXISTS (SELECT FROM extended WHERE classid = 'pg_class'::regclass AND objid = c.oid)
), types AS (
    SELECT t.*, s.schema FROM pg_type AS t JOIN spaces AS s ON s.oid = t.typnamespace
    WHERE NOT EXISTS (SELECT FROM extended WHERE classid = 'pg_type'::regclass AND objid = t.oid)
), facts (fact) AS (
    SELECT jsonb_build_array('schema', s.schema) FROM spaces AS s
    WHERE NOT EXISTS (SELECT FROM extended WHERE classid = 'pg_namespace'::regclass AND objid = s.oid)
    UNION ALL
    SELECT jsonb_build_array('extension', e.extname, e.extversion, e.extnamespace::regnamespace)
    FROM pg_extension AS e
    UNION ALL
    SELECT jsonb_build_array('relation', r.schema, r.relname, r.relkind, r.relpersistence, r.relrowsecurity,
        r.relforcerowsecurity, r.relreplident, r.reloptions, pg_get_expr(r.relpartbound, r.oid),
        CASE r.relkind WHEN 'p' THEN pg_get_partkeydef(r.oid) END,
        CASE WHEN r.relkind IN ('v', 'm') THEN pg_get_viewdef(r.oid) END,
        (SELECT array_agg(i.inhparent::regclass::text ORDER BY i.inhseqno) FROM pg_inherits AS i WHERE i.inhrelid = r.oid))
    FROM relations AS r
    UNION ALL
    -- Places are counted anew, because a column that was dropped leaves a gap in one database and not in its copy.
    SELECT jsonb_build_array('column', r.schema, r.relname, a.attname,
        row_number() OVER (PARTITION BY r.oid ORDER BY a.attnum), format_type(a.atttypid, a.atttypmod), a.attnotnull,
        a.attidentity, a.attgenerated, pg_get_expr(d.adbin, d.adrelid),
        CASE WHEN a.attcollation <> t.typcollation THEN a.attcollation::regcollation::text END)
    FROM relations AS r
    JOIN pg_attribute AS a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped
    JOIN pg_type AS t ON t.oid = a.atttypid
    LEFT JOIN pg_attrdef AS d ON d.adrelid = r.oid AND d.adnum = a.attnum
    WHERE r.relkind <> 'S'
    UNION ALL
    SELECT jsonb_build_array('sequence', r.schema, r.relname, format_type(q.seqtypid, NULL), q.seqstart, q.seqincrement,
        q.seqmin, q.seqmax, q.seqcache, q.seqcycle)
    FROM relations AS r JOIN pg_sequence AS q ON q.seqrelid = r.oid
    UNION ALL
    SELECT jsonb_build_array('index', r.schema, r.relname, pg_get_indexdef(i.indexrelid), i.indisvalid, i.indisreplident)
    FROM relations AS r JOIN pg_index AS i ON i.indrelid = r.oid
    UNION ALL
    SELECT jsonb_build_array('constraint', r.schema, r.relname, k.conname, pg_get_constraintdef(k.oid), k.convalidated)
    FROM relations AS r JOIN pg_constraint AS k ON k.conrelid = r.oid
    UNION ALL
    SELECT jsonb_build_array('trigger', r.schema, r.relname, pg_get_triggerdef(g.oid), g.tgenabled)
    FROM relations AS r JOIN pg_trigger AS g ON g.tgrelid = r.oid AND NOT g.tgisinternal
    UNION ALL
    SELECT jsonb_build_array('rule', r.schema, r.relname, pg_get_ruledef(w.oid), w.ev_enabled)
    FROM relations AS r JOIN pg_rewrite AS w ON w.ev_class = r.oid AND w.rulename <> '_RETURN'
    UNION ALL
    -- Not to whom a policy applies: roles are called otherwise in every tenant's database.
    SELECT jsonb_build_array('policy', r.schema, r.relname, p.polname, p.polcmd, p.polpermissive,
        pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid))
    FROM relations AS r JOIN pg_policy AS p ON p.polrelid = r.oid
    UNION ALL
    SELECT jsonb_build_array('statistics', s.schema, pg_get_statisticsobjdef(x.oid))
    FROM pg_statistic_ext AS x JOIN spaces AS s ON s.oid = x.stxnamespace
    UNION ALL
    SELECT jsonb_build_array('enum', t.schema, t.typname, array_agg(e.enumlabel ORDER BY e.enumsortorder))
    FROM types AS t JOIN pg_enum AS e ON e.enumtypid = t.oid GROUP BY t.schema, t.typname
    UNION ALL
    SELECT jsonb_build_array('domain', t.schema, t.typname, format_type(t.typbasetype, t.typtypmod), t.typnotnull,
        t.typdefault, (SELECT array_agg(k.conname || ' ' || pg_get_constraintdef(k.oid) ORDER BY k.conname)
            FROM pg_constraint AS k WHERE k.contypid = t.oid))
    FROM types AS t WHERE t.typtype = 'd'
    UNION ALL
    SELECT jsonb_build_array('range', t.schema, t.typname, format_type(g.rngsubtype, NULL))
    FROM types AS t JOIN pg_range AS g ON g.rngtypid = t.oid
    UNION ALL
    SELECT jsonb_build_array('routine', s.schema, p.oid::regprocedure::text, p.prokind,
        CASE WHEN p.prokind <> 'a' THEN pg_get_functiondef(p.oid) END)
    FROM pg_proc AS p JOIN spaces AS s ON s.oid = p.pronamespace
    WHERE NOT EXISTS (SELECT FROM extended WHERE classid = 'pg_proc'::regclass AND objid = p.oid)
)
SELECT encode(sha256(convert_to(string_agg(fact::text, E'\n' ORDER BY fact::text COLLATE "C"), 'UTF8')), 'hex')
FROM facts
