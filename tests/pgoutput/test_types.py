"""The table of built-in types against pg_type of real servers."""

from __future__ import annotations

from pgrepl.pgoutput.types import BUILTIN, FIRST_UNSTABLE_OID, TEXT, Kind, ValueType, builtin_type
from tests.servers.server import Server

KINDS = {
    "bool": Kind.BOOL,
    "int2": Kind.NUMBER,
    "int4": Kind.NUMBER,
    "int8": Kind.NUMBER,
    "oid": Kind.NUMBER,
    "float4": Kind.FLOAT,
    "float8": Kind.FLOAT,
    "json": Kind.JSON,
    "jsonb": Kind.JSON,
    "timestamp": Kind.TIMESTAMP,
    "timestamptz": Kind.TIMESTAMPTZ,
}


def test_built_in_types_are_those_of_the_server(server: Server) -> None:
    with server.connect() as connection:
        types = connection.execute(
            "SELECT t.oid::int8, t.typname, e.typname, e.typdelim"
            " FROM pg_type t LEFT JOIN pg_type e ON e.typarray = t.oid WHERE t.oid < %s",
            [FIRST_UNSTABLE_OID],
        ).fetchall()
    expected = {}
    for oid, name, element, delimiter in types:
        if element is not None:
            expected[oid] = ValueType(Kind.ARRAY, ValueType(KINDS.get(element, Kind.TEXT)), delimiter)
        elif name in KINDS:
            expected[oid] = ValueType(KINDS[name])
        else:
            assert builtin_type(oid) == TEXT
    assert expected == BUILTIN


def test_stable_oids_end_where_the_server_says(server: Server) -> None:
    """The row types of catalogs with an OID of their own stand above, and so do the domains of information_schema."""
    with server.connect() as connection:
        (oid,) = connection.execute(
            "SELECT min(oid)::int8 FROM pg_type WHERE typnamespace = 'information_schema'::regnamespace"
        ).fetchall()[0]
    assert builtin_type(oid) is None
    assert builtin_type(16384) is None


def test_vectors_are_text_and_box_has_its_own_delimiter() -> None:
    assert builtin_type(22) == builtin_type(30) == TEXT
    assert builtin_type(1020) == ValueType(Kind.ARRAY, TEXT, ";")
    assert builtin_type(1006) == ValueType(Kind.ARRAY, TEXT)
