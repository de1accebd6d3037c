CREATE SCHEMA "Odd ""schema"" é";
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE TYPE pair AS (left_one int, right_one text);
CREATE DOMAIN positive AS numeric(10, 2) CHECK (VALUE > 0);
CREATE TYPE span AS RANGE (subtype = int8);
-- Would be called by a cast, and a digest must never cast.
CREATE FUNCTION mood_text(mood) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'the tenant''s cast was called'; END $$;
CREATE CAST (mood AS text) WITH FUNCTION mood_text(mood) AS IMPLICIT;
CREATE TABLE everything (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    serial_one serial,
    feeling mood DEFAULT 'ok',
    feelings mood[],
    two pair,
    price positive,
    spans span,
    document json,
    binary_document jsonb,
    markup xml,
    place point,
    bits bit varying(9),
    address inet,
    amount money,
    taken interval,
    at timestamptz,
    data bytea,
    tenth real,
    third double precision,
    relation regclass,
    doubled numeric GENERATED ALWAYS AS (price * 2) STORED,
    "everything" text
);
INSERT INTO everything (feeling, feelings, two, price, spans, document, binary_document, markup, place, bits, address,
                        amount, taken, at, data, tenth, third, relation, "everything")
SELECT (ARRAY['sad', 'ok', 'happy'])[1 + i % 3]::mood, ARRAY['sad', 'happy']::mood[], ROW(i, 'it''s ' || i)::pair, i + 0.5,
       span(i, i + 10), json_build_object('i', i, 'text', E'line\n"quoted"'), jsonb_build_object('i', i),
       xmlparse(content '<a>' || i || '</a>'), point(i, -i), B'1011', '10.0.0.1'::inet + i, i::numeric::money, make_interval(mins => i, months => 1),
       timestamptz '2026-01-01 00:00:00+00' + i * interval '1 hour', decode(md5(i::text), 'hex'), i / 10.0::real,
       i / 3.0::double precision, 'everything'::regclass, nullif(i % 5, 0)::text
FROM generate_series(1, 500) AS i;
-- Equal rows, which an XOR would cancel, and nothing but NULLs.
CREATE TABLE twins (a int, b text);
INSERT INTO twins VALUES (1, 'x'), (1, 'x'), (2, NULL), (NULL, NULL), (NULL, '');
CREATE TABLE no_columns ();
INSERT INTO no_columns DEFAULT VALUES;
INSERT INTO no_columns DEFAULT VALUES;
CREATE TABLE empty (a int);
CREATE UNLOGGED TABLE unlogged (a int);
INSERT INTO unlogged SELECT generate_series(1, 10);
CREATE TABLE dropped_columns (a int, b text, c int);
ALTER TABLE dropped_columns DROP COLUMN b;
ALTER TABLE dropped_columns ADD COLUMN b uuid DEFAULT '6ba7b810-9dad-11d1-80b4-00c04fd430c8';
ALTER TABLE dropped_columns ADD UNIQUE (a);
INSERT INTO dropped_columns (a, c) SELECT i, -i FROM generate_series(1, 20) AS i;
CREATE TABLE referring (a int REFERENCES dropped_columns (a) DEFERRABLE);
INSERT INTO referring VALUES (1), (2);
CREATE TABLE measures (day date NOT NULL, region text, v numeric) PARTITION BY RANGE (day);
CREATE TABLE measures_2025 PARTITION OF measures FOR VALUES FROM ('2025-01-01') TO ('2026-01-01') PARTITION BY LIST (region);
CREATE TABLE measures_2025_eu PARTITION OF measures_2025 FOR VALUES IN ('eu');
CREATE TABLE measures_default PARTITION OF measures DEFAULT;
CREATE TABLE late (v numeric, region text, day date NOT NULL);
ALTER TABLE measures ATTACH PARTITION late FOR VALUES FROM ('2027-01-01') TO ('2028-01-01');
INSERT INTO measures SELECT date '2025-03-01' + i, 'eu', i * 1.10 FROM generate_series(1, 50) AS i;
INSERT INTO measures VALUES ('2027-05-05', 'us', 1.0), ('2030-01-01', 'us', 1.00);
CREATE TABLE parent (a int);
CREATE TABLE child (b int) INHERITS (parent);
ALTER TABLE parent ADD COLUMN z int DEFAULT 7;
INSERT INTO parent VALUES (1, 2);
INSERT INTO child (a, b) VALUES (3, 4);
CREATE TABLE guarded (a int, owner text DEFAULT current_user);
ALTER TABLE guarded ENABLE ROW LEVEL SECURITY;
ALTER TABLE guarded FORCE ROW LEVEL SECURITY;
CREATE POLICY nobody ON guarded USING (a = 1) WITH CHECK (true);
INSERT INTO guarded SELECT generate_series(1, 30);
CREATE TABLE "Odd ""schema"" é"."line
break; DROP TABLE x; --" ("co""l
umn %s %L" text, "%I" json, "select" int);
INSERT INTO "Odd ""schema"" é"."line
break; DROP TABLE x; --" VALUES ('a', '{}', 1), (NULL, NULL, NULL);
CREATE COLLATION caseless (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
CREATE TABLE caseless_names (name text COLLATE caseless);
INSERT INTO caseless_names VALUES ('Anna'), ('ANNA'), ('bob');
CREATE MATERIALIZED VIEW totals AS SELECT count(*) FROM measures;
CREATE VIEW open_view AS SELECT * FROM twins;
CREATE SEQUENCE backwards INCREMENT -1 START -1;
SELECT nextval('backwards') FROM generate_series(1, 3);
CREATE SEQUENCE never_used START 42;
CREATE SEQUENCE "Odd ""schema"" é"."se""q";
SELECT nextval('"Odd ""schema"" é"."se""q"');
SELECT lo_from_bytea(4242, 'a large object'::bytea);
CREATE FUNCTION checked(int) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT $1 > 0';
CREATE TABLE constrained (a int CHECK (public.checked(a)));
-- Would make the tenant a superuser, if a restore or a digest ever ran as one, `SET ROLE` or not.
CREATE FUNCTION escalate(a int) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    RESET ROLE;
    EXECUTE format('ALTER ROLE %I SUPERUSER', session_user);
    RETURN true;
EXCEPTION WHEN OTHERS THEN
    RETURN true;
END $$;
CREATE TABLE trapped (a int CHECK (public.escalate(a)));
INSERT INTO trapped VALUES (1);
-- Extensions that the tenant made by itself, one of them in a schema that comes with the archive.
CREATE SCHEMA ext;
CREATE EXTENSION citext SCHEMA ext;
CREATE EXTENSION hstore;
CREATE TABLE extended (a ext.citext PRIMARY KEY, b hstore);
INSERT INTO extended VALUES ('Text', 'a=>1'), ('other', NULL);
-- A large object with a hole in it.
SELECT lo_put(4242, 20000, 'after the hole');
