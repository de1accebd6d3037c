-- Reference data that is common to all tenants.

CREATE TABLE system_parameters (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    category text NOT NULL,
    key text NOT NULL,
    value jsonb,
    description text,
    is_editable boolean NOT NULL DEFAULT true,
    UNIQUE (category, key)
);

CREATE TABLE menus (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    parent_id uuid REFERENCES menus (id),
    code text NOT NULL UNIQUE,
    label text NOT NULL,
    icon text,
    path text,
    component text,
    permissions jsonb NOT NULL DEFAULT '[]',
    order_index integer NOT NULL DEFAULT 0,
    is_visible boolean NOT NULL DEFAULT true
);
CREATE INDEX menus_by_parent ON menus (parent_id, order_index);
