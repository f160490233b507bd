"""What happens in the sample database: a small shop, its first rows, and its life afterwards."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import psycopg

TABLES = ("shop.customers", "shop.orders", "shop.carts")

_CREATE = """
CREATE SCHEMA shop;
CREATE TYPE shop.order_state AS ENUM ('new', 'paid', 'shipped', 'cancelled');
CREATE TABLE shop.customers (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL,
    address jsonb,
    joined date NOT NULL DEFAULT current_date
);
CREATE TABLE shop.orders (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    customer bigint NOT NULL REFERENCES shop.customers,
    state shop.order_state NOT NULL DEFAULT 'new',
    total numeric(10, 2) NOT NULL,
    tags text[],
    ordered_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE shop.carts (
    customer bigint NOT NULL,
    product text NOT NULL,
    quantity integer NOT NULL,
    PRIMARY KEY (customer, product)
);
"""
_CUSTOMERS = """
INSERT INTO shop.customers (name, address)
SELECT format('%%s %%s', (ARRAY['Ada', 'Grace', 'Edsger', 'Barbara', 'Donald'])[1 + n %% 5], n),
       jsonb_build_object('city', (ARRAY['Zürich', 'Nairobi', 'São Paulo'])[1 + n %% 3], 'zip', 10000 + n)
FROM generate_series(1, %s) AS n
"""
_ORDERS = """
INSERT INTO shop.orders (customer, total, tags)
SELECT 1 + n %% %s, 9.99 + n, CASE WHEN n %% 3 = 0 THEN ARRAY['gift', 'express'] END
FROM generate_series(1, %s) AS n
"""
# One after the other they are a day in the shop; every line is a transaction, and every kind of change is among them.
_DAY = (
    'INSERT INTO shop.customers (name, address) VALUES (\'Margaret\', \'{"city": "Boston", "zip": 2138}\')',
    "INSERT INTO shop.orders (customer, total, tags) SELECT max(id), 42.50, '{express}' FROM shop.customers",
    """
    INSERT INTO shop.carts SELECT max(id), 'tea', 2 FROM shop.customers;
    INSERT INTO shop.carts SELECT max(id), 'a \"quoted\" cup', 1 FROM shop.customers;
    UPDATE shop.customers SET address = address || '{\"zip\": 2139}' WHERE id = (SELECT max(id) FROM shop.customers)
    """,
    "UPDATE shop.orders SET state = 'paid' WHERE id = (SELECT max(id) FROM shop.orders)",
    "INSERT INTO shop.carts SELECT 1, 'product ' || n, n FROM generate_series(1, 200) AS n",
    "DELETE FROM shop.carts WHERE product = 'tea'",
    "ALTER TABLE shop.orders ADD COLUMN courier text",
    "UPDATE shop.orders SET state = 'shipped', courier = 'by bike' WHERE id = (SELECT max(id) FROM shop.orders)",
    "TRUNCATE shop.carts",
    "ALTER TABLE shop.orders DROP COLUMN courier",
    "UPDATE shop.orders SET state = 'cancelled' WHERE id = (SELECT min(id) FROM shop.orders)",
    "DELETE FROM shop.orders WHERE state = 'cancelled'",
)
CHANGES_A_DAY = len(_DAY)


def create(connection: psycopg.Connection, rows: int) -> None:
    """Make the schema and ``rows`` rows: a fifth of them customers, at least one, the others their orders."""
    customers = max(1, rows // 5)
    with connection.transaction():
        connection.execute(_CREATE)
        connection.execute(_CUSTOMERS, [customers])
        connection.execute(_ORDERS, [customers, rows - customers])
        # So that the tables' sizes are known.
        connection.execute("ANALYZE")


def changes() -> Iterator[str]:
    """Yield one transaction's SQL after the other, without end; ``CHANGES_A_DAY`` of them show every kind of change."""
    yield from itertools.cycle(_DAY)
