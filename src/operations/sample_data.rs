//! Demo rows for the sample ERP of `tenant-migrations/`: the books of a steel trader. The same seed makes the same
//! rows each time, because every value is cut from an MD5 of the seed, the table and the row's number; no clock and no
//! chance take part.
//!
//! Must not know where the rows go: it takes a session in any database that has the tables.

use tokio_postgres::types::Type;
use tokio_postgres::{Client, Transaction};

use crate::postgres::Error;

/// Rows by table: 2,000 articles, 600 partners, 300 projects, 25,000 movements, 4,000 stocks; 31,900 in total.
const STATEMENTS: [&str; 5] = [ARTICLES, PARTNERS, PROJECTS, MOVEMENTS, STOCKS];

/// A UUID (version 4 by its looks) of what is in `$key`.
macro_rules! uuid_of {
    ($key:literal) => {
        concat!("overlay(overlay(md5($1 || ", $key, ") placing '4' from 13) placing '8' from 17)::uuid")
    };
}

/// Twelve bytes and more per row, as `h`, to be read with `get_byte`.
macro_rules! bytes_of {
    ($key:literal) => {
        concat!("decode(md5($1 || ", $key, "), 'hex') AS h")
    };
}

/// Inserts the demo rows, all or none, unless there are articles already. Answers how many rows were inserted.
pub async fn sample_rows_insert(client: &mut Client, seed: &str) -> Result<u64, Error> {
    let txn = client.transaction().await?;
    let rows = rows_insert_in_txn(&txn, seed).await?;
    txn.commit().await?;
    Ok(rows)
}

async fn rows_insert_in_txn(txn: &Transaction<'_>, seed: &str) -> Result<u64, Error> {
    // Whoever else wants to insert them waits here, and then finds them.
    txn.batch_execute("LOCK TABLE articles IN SHARE ROW EXCLUSIVE MODE").await?;
    if !txn.query_typed("SELECT FROM articles LIMIT 1", &[]).await?.is_empty() {
        return Ok(0);
    }
    let mut rows = 0;
    for statement in STATEMENTS {
        rows += txn.execute_typed(statement, &[(&seed, Type::TEXT)]).await?;
    }
    txn.batch_execute("ANALYZE articles, partners, projects, stocks, stock_movements").await?;
    Ok(rows)
}

const ARTICLES: &str = concat!(
    "WITH family (no, category, family, label, unit, norm, sizes, kg) AS (VALUES
        (0, 'Poutrelles', 'HEA', 'Poutrelle HEA', 'm', 'EN 10025-2', '{100,120,140,160,180,200,220,240,260,280,300,320,340,360,400}'::text[], 16.7),
        (1, 'Poutrelles', 'HEB', 'Poutrelle HEB', 'm', 'EN 10025-2', '{100,120,140,160,180,200,220,240,260,280,300,320}', 20.4),
        (2, 'Poutrelles', 'IPE', 'Poutrelle IPE', 'm', 'EN 10025-2', '{80,100,120,140,160,180,200,220,240,270,300,330,360,400}', 6.0),
        (3, 'Poutrelles', 'UPN', 'Profilé UPN', 'm', 'EN 10025-2', '{80,100,120,140,160,180,200,220,240,260,300}', 8.6),
        (4, 'Laminés marchands', 'COR', 'Cornière égale', 'm', 'EN 10056-1', '{30x30x3,40x40x4,50x50x5,60x60x6,70x70x7,80x80x8,100x100x10}', 1.4),
        (5, 'Laminés marchands', 'PLA', 'Plat', 'm', 'EN 10058', '{20x5,30x5,40x6,50x8,60x10,80x10,100x12,120x15}', 0.8),
        (6, 'Tubes', 'TCA', 'Tube carré', 'm', 'EN 10219-1', '{30x30x2,40x40x3,50x50x3,60x60x4,80x80x5,100x100x5,120x120x6}', 1.7),
        (7, 'Tubes', 'TRO', 'Tube rond', 'm', 'EN 10219-1', '{33.7x2.6,42.4x2.6,48.3x3.2,60.3x3.2,76.1x3.6,88.9x4,114.3x4.5}', 2.0),
        (8, 'Tôles', 'TOL', 'Tôle noire', 'piece', 'EN 10051', '{2000x1000x2,2500x1250x3,3000x1500x4,3000x1500x6,4000x2000x8,6000x2000x10}', 31.4),
        (9, 'Tôles', 'TGA', 'Tôle galvanisée', 'piece', 'EN 10346', '{2000x1000x0.8,2000x1000x1,2500x1250x1.5,3000x1500x2}', 12.6)
    ), drawn AS (
        SELECT n, f.*, ",
    bytes_of!("':article:' || n"),
    " FROM generate_series(1, 2000) AS n JOIN family AS f ON f.no = n % 10
    ), sized AS (
        SELECT drawn.*, 1 + get_byte(h, 0) % cardinality(sizes) AS size_no,
            ('{S235JR,S275JR,S355J2,S355J2+N}'::text[])[1 + get_byte(h, 1) % 4] AS grade,
            ('{6,10,12,12.1,15}'::text[])[1 + get_byte(h, 2) % 5] AS length_m
        FROM drawn
    ), weighed AS (
        SELECT sized.*, round((kg * (1 + 0.37 * (size_no - 1)))::numeric, 3) AS weight FROM sized
    ), bought AS (
        SELECT weighed.*, round(weight * (0.82 + get_byte(h, 3) / 400.0), 2) AS cost FROM weighed
    )
    INSERT INTO articles (id, code, designation, category, family, grade, unit, weight_per_unit, purchase_price,
        sale_price, stock_min, stock_max, is_active, metadata, created_at, updated_at)
    SELECT ",
    uuid_of!("':article:' || n"),
    ", family || '-' || sizes[size_no] || '-' || grade || '-' || lpad(n::text, 5, '0'),
        label || ' ' || sizes[size_no] || ' ' || grade || CASE unit WHEN 'm' THEN ', barre de ' || length_m || ' m' ELSE '' END,
        category, family, grade, unit, weight, cost, round(cost * (1.18 + get_byte(h, 4) / 900.0), 2),
        (get_byte(h, 5) % 12) * 5, 100 + get_byte(h, 6) * 4, get_byte(h, 7) > 8,
        jsonb_build_object('norm', norm, 'length_m', CASE unit WHEN 'm' THEN length_m::numeric END,
            'heat', 'C' || lpad((get_byte(h, 8) * 256 + get_byte(h, 9))::text, 6, '0')),
        at, at
    FROM bought
    CROSS JOIN LATERAL (SELECT timestamptz '2023-01-02 08:00+00' + (get_byte(h, 10) * 256 + get_byte(h, 11)) * interval '7 minutes') AS t (at)
    ORDER BY n"
);

const PARTNERS: &str = concat!(
    "WITH drawn AS (
        SELECT n, ",
    bytes_of!("':partner:' || n"),
    " FROM generate_series(1, 600) AS n
    ), named AS (
        SELECT drawn.*,
            ('{Métallerie,Charpentes,Chaudronnerie,Constructions Métalliques,Serrurerie,Ateliers,Fers et Aciers,Sidérurgie,Tôlerie,Bardage}'::text[])[1 + get_byte(h, 0) % 10]
            || ' ' ||
            ('{Durand,Lefèvre,Moreau,Girard,Roussel,Fontaine,Chevalier,Garnier,Lambert,Mercier,Blanchard,Perrin,Marchal,Aubert,Guillot,Besnard}'::text[])[1 + get_byte(h, 1) % 16]
            AS name,
            ('{SARL,SAS,SA,EURL}'::text[])[1 + get_byte(h, 2) % 4] AS form,
            ('{Lyon,Lille,Dunkerque,Metz,Nantes,Saint-Étienne,Le Creusot,Toulouse,Rouen,Strasbourg,Grenoble,Fos-sur-Mer}'::text[])[1 + get_byte(h, 3) % 12] AS town,
            300000000 + get_byte(h, 4) * 1048576 + get_byte(h, 5) * 4096 + get_byte(h, 6) * 16 + n % 16 AS siren
        FROM drawn
    )
    INSERT INTO partners (id, code, type, name, legal_name, siret, vat_number, address, payment_terms, credit_limit,
        rating, is_active, created_at)
    SELECT ",
    uuid_of!("':partner:' || n"),
    ", 'P' || lpad(n::text, 5, '0'),
        (CASE WHEN n % 10 < 6 THEN 'client' WHEN n % 10 < 9 THEN 'supplier' ELSE 'both' END)::partner_type,
        name || ' ' || town, name || ' ' || form, siren || lpad((1 + get_byte(h, 7) % 40)::text, 5, '0'),
        'FR' || lpad(((12 + 3 * (siren % 97)) % 97)::text, 2, '0') || siren,
        jsonb_build_object('street', (1 + get_byte(h, 8) % 180) || ' rue de l''Industrie', 'city', town, 'country', 'FR'),
        (ARRAY[30, 45, 60])[1 + get_byte(h, 9) % 3], (1 + get_byte(h, 10) % 60) * 2500, 1 + get_byte(h, 11) % 5,
        get_byte(h, 12) > 12, timestamptz '2022-03-01 09:00+00' + n * interval '9 hours'
    FROM named
    ORDER BY n"
);

/// A project's client is a partner whose number ends in a digit below 6.
const PROJECTS: &str = concat!(
    "WITH drawn AS (
        SELECT n, ",
    bytes_of!("':project:' || n"),
    " FROM generate_series(1, 300) AS n
    ), dated AS (
        SELECT drawn.*, date '2023-01-09' + get_byte(h, 0) * 4 AS begins,
            10 * (1 + get_byte(h, 1) % 59) + get_byte(h, 2) % 6 AS client_no,
            ('{draft,quoted,active,active,active,on_hold,done,done,cancelled}'::text[])[1 + get_byte(h, 3) % 9] AS status,
            (5 + get_byte(h, 4)) * 1250.00 AS budget
        FROM drawn
    )
    INSERT INTO projects (id, code, name, client_id, site_id, status, start_date, end_date, budget, actual_cost,
        progress, metadata, created_at)
    SELECT ",
    uuid_of!("':project:' || n"),
    ", 'CH-' || to_char(begins, 'YYYY') || '-' || lpad(n::text, 4, '0'),
        ('{Charpente,Passerelle,Mezzanine,Bardage,Escalier,Auvent,Hangar,Garde-corps}'::text[])[1 + get_byte(h, 5) % 8] || ' ' ||
        ('{Gare Part-Dieu,Zone Nord,Port Est,Lycée Monge,Halle Centrale,Usine Vallourec,Entrepôt Sud,Stade Municipal}'::text[])[1 + get_byte(h, 6) % 8],
        ",
    uuid_of!("':partner:' || client_no"),
    ", ",
    uuid_of!("':site:' || get_byte(h, 7) % 4"),
    ", status, begins, begins + 20 + get_byte(h, 8), budget, round(budget * done / 100.0 * (0.8 + get_byte(h, 9) / 640.0), 2),
        done, jsonb_build_object('tonnage', round(budget / 3100, 1)), begins::timestamp AT TIME ZONE 'UTC'
    FROM dated
    CROSS JOIN LATERAL (
        SELECT CASE status WHEN 'done' THEN 100 WHEN 'active' THEN get_byte(h, 10) % 100 ELSE 0 END
    ) AS progress (done)
    ORDER BY n"
);

/// Articles lie on two of four sites. Goods in refer to a purchase order, goods out to a project.
const MOVEMENTS: &str = concat!(
    "WITH drawn AS (
        SELECT n, ",
    bytes_of!("':movement:' || n"),
    " FROM generate_series(1, 25000) AS n
    ), told AS (
        SELECT drawn.*, 1 + (get_byte(h, 0) * 256 + get_byte(h, 1)) % 2000 AS article_no,
            ('{in,in,in,out,out,out,out,transfer,adjustment}'::text[])[1 + get_byte(h, 2) % 9] AS type
        FROM drawn
    ), keyed AS (
        SELECT told.*, ",
    uuid_of!("':article:' || article_no"),
    " AS article_id FROM told
    )
    INSERT INTO stock_movements (id, article_id, site_id, type, quantity, unit_price, reference_type, reference_id,
        reason, created_by, created_at)
    SELECT ",
    uuid_of!("':movement:' || n"),
    ", a.id, ",
    uuid_of!("':site:' || (article_no + get_byte(h, 3) % 2) % 4"),
    ", k.type,
        CASE k.type WHEN 'in' THEN 20 + get_byte(h, 4) WHEN 'out' THEN -1 - get_byte(h, 4) % 60
            WHEN 'transfer' THEN -1 - get_byte(h, 4) % 20 ELSE (1 + get_byte(h, 4) % 9) * (1 - 2 * (get_byte(h, 5) % 2)) END,
        CASE k.type WHEN 'in' THEN a.purchase_price WHEN 'out' THEN a.sale_price END,
        CASE k.type WHEN 'in' THEN 'purchase_order' WHEN 'out' THEN 'project' END,
        CASE k.type WHEN 'in' THEN ",
    uuid_of!("':order:' || n / 6"),
    " WHEN 'out' THEN ",
    uuid_of!("':project:' || 1 + (get_byte(h, 6) * 256 + get_byte(h, 7)) % 300"),
    " END,
        CASE k.type WHEN 'adjustment' THEN 'Inventaire tournant' WHEN 'transfer' THEN 'Rééquilibrage entre dépôts' END, ",
    uuid_of!("':user:' || get_byte(h, 8) % 12"),
    ", timestamptz '2024-01-02 07:30+00' + n * interval '37 minutes' + get_byte(h, 9) * interval '5 seconds'
    FROM keyed AS k JOIN articles AS a ON a.id = k.article_id
    ORDER BY n"
);

/// What lies on a site is what came and went since the opening count, and never less than nothing.
const STOCKS: &str = concat!(
    "WITH drawn AS (
        SELECT n, place, ",
    bytes_of!("':stock:' || n || ':' || place"),
    ", ",
    uuid_of!("':article:' || n"),
    " AS article_id, ",
    uuid_of!("':site:' || (n + place) % 4"),
    " AS site_id FROM generate_series(1, 2000) AS n, generate_series(0, 1) AS place
    ), moved AS (
        SELECT article_id, site_id, sum(quantity) AS quantity, max(created_at) AS last FROM stock_movements GROUP BY 1, 2
    )
    INSERT INTO stocks (id, article_id, site_id, quantity, reserved_quantity, location, last_movement_at)
    SELECT ",
    uuid_of!("':stock:' || n || ':' || place"),
    ", article_id, site_id, lies, floor(lies * (get_byte(h, 1) % 30) / 100.0),
        'Allée ' || chr(65 + get_byte(h, 2) % 8) || ', rack ' || 1 + get_byte(h, 3) % 24, m.last
    FROM drawn LEFT JOIN moved AS m USING (article_id, site_id)
    CROSS JOIN LATERAL (SELECT greatest(0, 40 + get_byte(h, 0) + coalesce(m.quantity, 0))) AS t (lies)
    ORDER BY n, place"
);
