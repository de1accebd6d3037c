-- What a steel trader buys and sells: beams, tubes, sheets, each in its grade.

CREATE TABLE articles (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    -- The number on shelves and labels; codes may change, this never does.
    number bigint GENERATED ALWAYS AS IDENTITY (START WITH 1000) NOT NULL UNIQUE,
    code varchar(50) NOT NULL UNIQUE,
    designation varchar(255) NOT NULL,
    category varchar(100) NOT NULL,
    family varchar(100),
    grade varchar(20),
    unit varchar(20) NOT NULL DEFAULT 'piece',
    weight_per_unit numeric(10, 3),
    purchase_price numeric(12, 2),
    sale_price numeric(12, 2),
    stock_min numeric(10, 2) NOT NULL DEFAULT 0,
    stock_max numeric(10, 2),
    is_active boolean NOT NULL DEFAULT true,
    metadata jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT articles_code_not_blank CHECK (btrim(code) <> ''),
    CONSTRAINT articles_weight_positive CHECK (weight_per_unit > 0),
    CONSTRAINT articles_prices_not_negative CHECK (purchase_price >= 0 AND sale_price >= 0),
    CONSTRAINT articles_stock_bounds CHECK (stock_min >= 0 AND (stock_max IS NULL OR stock_max >= stock_min)),
    CONSTRAINT articles_metadata_is_object CHECK (jsonb_typeof(metadata) = 'object')
);

CREATE INDEX articles_category_idx ON articles (category, family);

COMMENT ON TABLE articles IS 'What is bought, stored and sold.';
