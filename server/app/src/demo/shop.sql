-- The demo's shop: a little of each that a table can hold.
SET search_path = public;

CREATE TYPE order_status AS ENUM ('pending', 'paid', 'shipped', 'delivered', 'cancelled');

CREATE TABLE customers (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    email       text NOT NULL UNIQUE,
    name        text NOT NULL,
    tags        text[] NOT NULL DEFAULT '{}',
    preferences jsonb NOT NULL DEFAULT '{}',
    created_at  timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE products (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    sku         text NOT NULL UNIQUE,
    name        text NOT NULL,
    price       numeric(10, 2) NOT NULL,
    stock       integer NOT NULL,
    description text NOT NULL
);
-- Stored out of line: an update that leaves it alone does not send it.
ALTER TABLE products ALTER COLUMN description SET STORAGE EXTERNAL;

CREATE TABLE orders (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    customer_id bigint NOT NULL REFERENCES customers,
    status      order_status NOT NULL DEFAULT 'pending',
    total       numeric(12, 2),
    note        text,
    placed_at   timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE order_lines (
    order_id   bigint NOT NULL REFERENCES orders ON DELETE CASCADE,
    line       integer NOT NULL,
    product_id bigint NOT NULL REFERENCES products,
    quantity   integer NOT NULL CHECK (quantity > 0),
    unit_price numeric(10, 2) NOT NULL,
    PRIMARY KEY (order_id, line)
);

INSERT INTO customers (email, name, tags)
SELECT lower(name) || '@example.com', name, ARRAY['founding']
FROM unnest(ARRAY['Ada', 'Grace', 'Edsger', 'Barbara', 'Alan', 'Katherine']) AS name;

INSERT INTO products (sku, name, price, stock, description)
SELECT 'SKU-' || lpad(n::text, 3, '0'), name, 4 + n * 3.5, 100, repeat(name || ' of the finest make. ', 150)
FROM unnest(ARRAY['Teapot', 'Kettle', 'Cup', 'Saucer', 'Spoon', 'Strainer', 'Tray', 'Caddy']) WITH ORDINALITY AS p(name, n);
