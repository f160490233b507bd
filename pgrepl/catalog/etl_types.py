"""The names that supabase/etl gives to types in ``etl.table_columns.column_type``."""

from __future__ import annotations

from collections.abc import Collection

import psycopg

from pgrepl.pgoutput.types import FIRST_UNSTABLE_OID

# By pg_type.typname; a built-in type that is not here has no name of its own there.
_NAMES = {
    "bool": "BOOL",
    "char": "CHAR",
    "bpchar": "BPCHAR",
    "varchar": "VARCHAR",
    "name": "NAME",
    "text": "TEXT",
    "int2": "INT2",
    "int4": "INT4",
    "int8": "INT8",
    "oid": "OID",
    "float4": "FLOAT4",
    "float8": "FLOAT8",
    "numeric": "NUMERIC",
    "bytea": "BYTEA",
    "date": "DATE",
    "time": "TIME",
    "timetz": "TIMETZ",
    "timestamp": "TIMESTAMP",
    "timestamptz": "TIMESTAMPTZ",
    "interval": "INTERVAL",
    "uuid": "UUID",
    "json": "JSON",
    "jsonb": "JSONB",
    "money": "MONEY",
    "inet": "INET",
    "cidr": "CIDR",
    "macaddr": "MACADDR",
    "macaddr8": "MACADDR8",
    "bit": "BIT",
    "varbit": "VARBIT",
    "point": "POINT",
    "line": "LINE",
    "lseg": "LSEG",
    "box": "BOX",
    "path": "PATH",
    "polygon": "POLYGON",
    "circle": "CIRCLE",
    "tsvector": "TSVECTOR",
    "tsquery": "TSQUERY",
    "pg_lsn": "PG_LSN",
    "int4range": "INT4_RANGE",
    "int8range": "INT8_RANGE",
    "numrange": "NUM_RANGE",
    "tsrange": "TS_RANGE",
    "tstzrange": "TSTZ_RANGE",
    "daterange": "DATE_RANGE",
    "_bool": "BOOL_ARRAY",
    "_varchar": "VARCHAR_ARRAY",
    "_text": "TEXT_ARRAY",
    "_int2": "INT2_ARRAY",
    "_int4": "INT4_ARRAY",
    "_int8": "INT8_ARRAY",
    "_float4": "FLOAT4_ARRAY",
    "_float8": "FLOAT8_ARRAY",
    "_numeric": "NUMERIC_ARRAY",
    "_date": "DATE_ARRAY",
    "_timestamp": "TIMESTAMP_ARRAY",
    "_timestamptz": "TIMESTAMPTZ_ARRAY",
    "_uuid": "UUID_ARRAY",
    "_json": "JSON_ARRAY",
    "_jsonb": "JSONB_ARRAY",
}


def names(connection: psycopg.Connection, oids: Collection[int]) -> dict[int, str]:
    """Name types as supabase/etl does: users' types are TEXT, built-in ones without a name of their own UNKNOWN(…)."""
    found = dict.fromkeys(oids, "TEXT")
    query = "SELECT t.oid, t.typname::text FROM pg_catalog.pg_type t WHERE t.oid = ANY (%s::oid[])"
    for oid, name in connection.execute(query, [[oid for oid in oids if oid < FIRST_UNSTABLE_OID]]):
        found[oid] = _NAMES.get(name, f"UNKNOWN({name})")
    return found
