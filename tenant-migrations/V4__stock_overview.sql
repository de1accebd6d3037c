-- What the warehouse asks every morning, and the clock of articles.

CREATE VIEW article_availability AS
SELECT
    a.id,
    a.code,
    a.designation,
    a.unit,
    coalesce(sum(s.quantity), 0) AS quantity,
    coalesce(sum(s.quantity - s.reserved_quantity), 0) AS available,
    coalesce(sum(s.quantity), 0) < a.stock_min AS is_short
FROM articles AS a
LEFT JOIN stocks AS s ON s.article_id = a.id
WHERE a.is_active
GROUP BY a.id;

CREATE FUNCTION articles_touch() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    NEW.updated_at := now();
    RETURN NEW;
END
$$;

CREATE TRIGGER articles_touch
BEFORE UPDATE ON articles
FOR EACH ROW
WHEN (OLD.* IS DISTINCT FROM NEW.*)
EXECUTE FUNCTION articles_touch();
