-- Whom the company trades with, and what it builds for them.

CREATE TYPE partner_type AS ENUM ('client', 'supplier', 'both');

CREATE TABLE partners (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    code varchar(50) NOT NULL UNIQUE,
    type partner_type NOT NULL,
    name varchar(255) NOT NULL,
    legal_name varchar(255),
    siret varchar(14),
    vat_number varchar(20),
    address jsonb NOT NULL DEFAULT '{}',
    payment_terms integer NOT NULL DEFAULT 30,
    credit_limit numeric(12, 2),
    rating integer,
    is_active boolean NOT NULL DEFAULT true,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT partners_siret_digits CHECK (siret ~ '^[0-9]{14}$'),
    CONSTRAINT partners_rating_range CHECK (rating BETWEEN 1 AND 5),
    CONSTRAINT partners_payment_terms_range CHECK (payment_terms BETWEEN 0 AND 180),
    CONSTRAINT partners_credit_not_negative CHECK (credit_limit >= 0)
);

CREATE INDEX partners_type_idx ON partners (type) WHERE is_active;
CREATE INDEX partners_siret_idx ON partners (siret) WHERE siret IS NOT NULL;

CREATE TABLE projects (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    code varchar(50) NOT NULL UNIQUE,
    name varchar(255) NOT NULL,
    client_id uuid NOT NULL REFERENCES partners (id),
    -- Sites are the shared database's, so no foreign key can follow them.
    site_id uuid,
    status varchar(30) NOT NULL DEFAULT 'draft',
    start_date date,
    end_date date,
    budget numeric(12, 2),
    actual_cost numeric(12, 2) NOT NULL DEFAULT 0,
    progress integer NOT NULL DEFAULT 0,
    metadata jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT projects_status_known CHECK (status IN ('draft', 'quoted', 'active', 'on_hold', 'done', 'cancelled')),
    CONSTRAINT projects_dates_in_order CHECK (end_date >= start_date),
    CONSTRAINT projects_progress_percent CHECK (progress BETWEEN 0 AND 100),
    CONSTRAINT projects_budget_not_negative CHECK (budget >= 0)
);

CREATE INDEX projects_client_idx ON projects (client_id);
CREATE INDEX projects_status_idx ON projects (status);
