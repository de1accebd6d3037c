-- How much of an article lies where, and every movement that made it so.

CREATE TABLE stocks (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    article_id uuid NOT NULL REFERENCES articles (id),
    site_id uuid NOT NULL,
    quantity numeric(12, 3) NOT NULL DEFAULT 0,
    reserved_quantity numeric(12, 3) NOT NULL DEFAULT 0,
    location varchar(100),
    last_movement_at timestamptz,
    UNIQUE (article_id, site_id),
    CONSTRAINT stocks_quantity_not_negative CHECK (quantity >= 0),
    CONSTRAINT stocks_reserved_in_stock CHECK (reserved_quantity BETWEEN 0 AND quantity)
);

CREATE INDEX stocks_site_idx ON stocks (site_id);

CREATE SEQUENCE stock_movement_numbers START WITH 100000;

CREATE TABLE stock_movements (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    -- Printed on the delivery note.
    number bigint NOT NULL DEFAULT nextval('stock_movement_numbers') UNIQUE,
    article_id uuid NOT NULL REFERENCES articles (id),
    site_id uuid NOT NULL,
    type varchar(30) NOT NULL,
    quantity numeric(12, 3) NOT NULL,
    unit_price numeric(12, 2),
    reference_type varchar(50),
    reference_id uuid,
    reason text,
    -- A user of the auth database.
    created_by uuid NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT stock_movements_type_known CHECK (type IN ('in', 'out', 'transfer', 'adjustment')),
    CONSTRAINT stock_movements_quantity_not_zero CHECK (quantity <> 0),
    CONSTRAINT stock_movements_price_not_negative CHECK (unit_price >= 0),
    CONSTRAINT stock_movements_reference_whole CHECK ((reference_type IS NULL) = (reference_id IS NULL))
);

ALTER SEQUENCE stock_movement_numbers OWNED BY stock_movements.number;

CREATE INDEX stock_movements_article_idx ON stock_movements (article_id, created_at DESC);
CREATE INDEX stock_movements_reference_idx ON stock_movements (reference_type, reference_id)
    WHERE reference_id IS NOT NULL;
