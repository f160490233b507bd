"""Values through the whole program: a row of the snapshot and the same row of the stream are the same bytes."""

from __future__ import annotations

import json

import psycopg
import pytest
from psycopg import sql

from tests.servers.database import Database
from tests.tail.scenario import streaming

# What a database or a role prefers must not change what is printed.
CONTRARY = """
    ALTER DATABASE {0} SET datestyle = 'German, DMY';
    ALTER DATABASE {0} SET timezone = 'Asia/Kathmandu';
    ALTER DATABASE {0} SET intervalstyle = 'sql_standard';
    ALTER DATABASE {0} SET extra_float_digits = -5;
    ALTER DATABASE {0} SET bytea_output = 'escape';
    ALTER ROLE reader SET client_encoding = 'LATIN1';
    ALTER DATABASE {0} SET xmlbinary = 'hex';
    ALTER ROLE reader SET timezone = 'America/New_York';
    ALTER ROLE reader SET statement_timeout = '1ms';
    ALTER ROLE reader SET search_path = 'pg_catalog, public';
    ALTER ROLE reader SET row_security = 'off';
"""


def bodies(lines: list[bytes], op: str) -> list[bytes]:
    """Of the lines of an op, what does not depend on when it was printed: table, key and row."""
    prefix = f'{{"op":"{op}",'.encode()
    found = []
    for line in lines:
        if line.startswith(prefix):
            json.loads(line)
            end = b',"snapshot_lsn":' if op == "read" else b',"commit_lsn":'
            found.append(line.removeprefix(prefix).rpartition(end)[0])
    return found


def both_ways(database: Database, name: str) -> list[bytes]:
    """Print the rows of a table from a snapshot, and from a stream after they were inserted again.

    Gives the table, key and row of each line, which must be the same both ways.
    """
    with database.connect() as connection:
        table = sql.SQL(name)
        connection.execute("CREATE ROLE reader LOGIN REPLICATION; GRANT pg_read_all_data TO reader")
        for statement in CONTRARY.format(database.name).strip().split(";"):
            connection.execute(statement)
        connection.execute(sql.SQL("CREATE TABLE kept AS TABLE {}").format(table))
        connection.execute(sql.SQL("CREATE PUBLICATION pub FOR TABLE {}").format(table))
        columns = _columns(connection, name)
    with streaming(database, user="reader") as stream:
        insert = sql.SQL("TRUNCATE {0}; INSERT INTO {0} ({1}) SELECT {1} FROM kept").format(table, columns)
        with database.connect() as connection:
            connection.execute(insert)
        stream.changes()
        lines = stream.tail.lines
    reads, inserts = bodies(lines, "read"), bodies(lines, "insert")
    assert sorted(reads) == sorted(inserts)
    return reads


def _columns(connection: psycopg.Connection, table: str) -> sql.Composable:
    rows = connection.execute(
        "SELECT attname FROM pg_attribute"
        " WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum",
        [table],
    )
    return sql.SQL(", ").join(sql.Identifier(name) for (name,) in rows)


TYPES = """
    CREATE TYPE mood AS ENUM ('happy', 'so "sad"', '{,}');
    CREATE DOMAIN positive AS int CHECK (VALUE > 0);
    CREATE DOMAIN very_positive AS positive CHECK (VALUE > 9);
    CREATE DOMAIN moods AS mood[];
    CREATE DOMAIN document AS jsonb;
    CREATE DOMAIN instant AS timestamptz(3);
    CREATE TYPE place AS (x int, name text, at timestamptz);
    CREATE TYPE textrange AS RANGE (subtype = text);
"""

# Type, literal, and what is printed.
VALUES = [
    ("bool", "yes", "true"),
    ("bool[]", "{t,f,NULL}", "[true,false,null]"),
    ("int2", "-32768", "-32768"),
    ("int4", "-2147483648", "-2147483648"),
    ("int8", "9223372036854775807", "9223372036854775807"),
    ("int8[]", "{{1,2},{3,NULL}}", "[[1,2],[3,null]]"),
    ("int4[]", "[0:2]={1,2,3}", '"[0:2]={1,2,3}"'),
    ("int4[]", "{}", "[]"),
    ("int4[]", "{{{1},{2}},{{3},{4}}}", "[[[1],[2]],[[3],[4]]]"),
    ("oid", "4294967295", "4294967295"),
    ("oid[]", "{0}", "[0]"),
    ("float4", "0.1", "0.1"),
    ("float4", "3.4028235e38", "3.4028235e+38"),
    ("float8", "0.30000000000000004", "0.30000000000000004"),
    ("float8", "-0", "-0.0"),
    ("float8", "5e-324", "5e-324"),
    ("float8", "NaN", '"NaN"'),
    ("float8", "-Infinity", '"-Infinity"'),
    ("float8[]", "{1e20,-0,NaN,Infinity,NULL}", '[1e+20,-0.0,"NaN","Infinity",null]'),
    ("numeric", "-12345678901234567890.1234567890", '"-12345678901234567890.1234567890"'),
    ("numeric(12,2)", "7", '"7.00"'),
    ("numeric", "NaN", '"NaN"'),
    ("numeric", "Infinity", '"Infinity"'),
    ("numeric[]", "{1.10,NULL,NaN}", '["1.10",null,"NaN"]'),
    ("json", '{ "b": [1.0, 1E5],\n\t"b": "\\ud800 , \\u0041" }', '{"b":[1.0,1E5],"b":"\\ud800 , \\u0041"}'),
    ("jsonb", '{"b": 12345678901234567890.10, "a": "x, y: z"}', '{"a":"x, y: z","b":12345678901234567890.10}'),
    ("jsonb", "null", "null"),
    ("jsonb[]", '{"{\\"a\\": 1}",NULL,"null"}', '[{"a":1},null,null]'),
    ("json[]", '{"[1, 2 ]"}', "[[1,2]]"),
    ("date", "2026-01-31", '"2026-01-31"'),
    ("date", "4713-01-01 BC", '"4713-01-01 BC"'),
    ("date", "5874897-12-31", '"5874897-12-31"'),
    ("date", "-infinity", '"-infinity"'),
    ("date[]", "{2026-01-31,infinity}", '["2026-01-31","infinity"]'),
    ("time", "12:30:00.50", '"12:30:00.5"'),
    ("time", "24:00", '"24:00:00"'),
    ("timetz", "12:30:00+05:45", '"12:30:00+05:45"'),
    ("timestamp", "2026-01-31 12:30:00.123456", '"2026-01-31T12:30:00.123456"'),
    ("timestamp", "0044-03-15 12:00:00 BC", '"0044-03-15 12:00:00 BC"'),
    ("timestamp", "10000-01-01", '"10000-01-01 00:00:00"'),
    ("timestamp(0)[]", '{"2026-01-31 12:30:00.6",infinity}', '["2026-01-31T12:30:01","infinity"]'),
    ("timestamptz", "2026-01-31 12:30:00+02", '"2026-01-31T10:30:00Z"'),
    ("timestamptz", "infinity", '"infinity"'),
    ("timestamptz", "0044-03-15 12:00:00+00 BC", '"0044-03-15 12:00:00+00 BC"'),
    ("timestamptz[]", '{"2026-01-31 12:30:00.5+00"}', '["2026-01-31T12:30:00.5Z"]'),
    ("interval", "-1 year 2 days -03:00:00.5", '"-1 years +2 days -03:00:00.5"'),
    ("interval[]", '{"1 mon",NULL}', '["1 mon",null]'),
    ("money", "-1234.5", '"-$1,234.50"'),
    ("money[]", '{"$1.00"}', '["$1.00"]'),
    ("bytea", "\\x00ff5c", '"\\\\x00ff5c"'),
    ("bytea", "", '"\\\\x"'),
    ("bytea[]", '{"\\\\x5c00",NULL}', '["\\\\x5c00",null]'),
    ("uuid", "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", '"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"'),
    ("uuid[]", "{a0eebc999c0b4ef8bb6d6bb9bd380a11}", '["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"]'),
    ("text", "", '""'),
    ("text", "\\N", '"\\\\N"'),
    ("text", "NULL", '"NULL"'),
    ("text", '\x01\x1f\x7f\b\f\n\r\t\v"\\/\u2028🐘é', '"\\u0001\\u001f\x7f\\b\\f\\n\\r\\t\\u000b\\"\\\\/\u2028🐘é"'),
    ("text", "\\.", '"\\\\."'),
    ("text[]", '{NULL,"NULL","null","","a,b"}', '[null,"NULL","null","","a,b"]'),
    ("text[]", '{"{}","\\"","\\\\"," ",🐘}', '["{}","\\"","\\\\"," ","🐘"]'),
    ("text[]", '[2:3][-1:0]={{a,b},{c,"d\n"}}', '"[2:3][-1:0]={{a,b},{c,\\"d\\n\\"}}"'),
    ("varchar(5)", "ab ", '"ab "'),
    ("char(5)", "ab", '"ab   "'),
    ('"char"', "x", '"x"'),
    ("name", "n", '"n"'),
    ("inet", "10.0.0.1/8", '"10.0.0.1/8"'),
    ("cidr[]", "{10.0.0.0/8,::/0}", '["10.0.0.0/8","::/0"]'),
    ("macaddr", "08:00:2b:01:02:03", '"08:00:2b:01:02:03"'),
    ("macaddr8", "08:00:2b:01:02:03:04:05", '"08:00:2b:01:02:03:04:05"'),
    ("bit(3)", "101", '"101"'),
    ("varbit[]", "{10,NULL}", '["10",null]'),
    ("point", "(1.5,2)", '"(1.5,2)"'),
    ("line", "{1,2,3}", '"{1,2,3}"'),
    ("lseg", "[(1,2),(3,4)]", '"[(1,2),(3,4)]"'),
    ("box[]", "{(3,4),(1,2);NULL}", '["(3,4),(1,2)",null]'),
    ("path", "[(1,2),(3,4)]", '"[(1,2),(3,4)]"'),
    ("polygon", "((1,2),(3,4))", '"((1,2),(3,4))"'),
    ("circle", "<(1,2),3>", '"<(1,2),3>"'),
    ("tsvector", "a:1A 'b''c'", "\"'a':1A 'b''c'\""),
    ("tsquery", "a & !b", "\"'a' & !'b'\""),
    ("pg_lsn", "0/16B3748", '"0/16B3748"'),
    ("int2vector", "1 2", '"1 2"'),
    ("oidvector", "1 2", '"1 2"'),
    ("xid8", "7", '"7"'),
    ("regclass", "pg_catalog.pg_class", '"pg_class"'),
    ("int4range", "[1,5]", '"[1,6)"'),
    ("daterange", "[2026-01-31,infinity)", '"[2026-01-31,infinity)"'),
    ("tstzrange[]", '{"[2026-01-31 00:00+00,)",empty}', '["[\\"2026-01-31 00:00:00+00\\",)","empty"]'),
    ("int8multirange", "{[1,5),[7,9)}", '"{[1,5),[7,9)}"'),
    ("numrange", "empty", '"empty"'),
    ("textrange", '["a,b","c"]', '"[\\"a,b\\",c]"'),
    ("mood", 'so "sad"', '"so \\"sad\\""'),
    ("mood[]", '{happy,"so \\"sad\\"","{,}",NULL}', '["happy","so \\"sad\\"","{,}",null]'),
    ("positive", "5", "5"),
    ("very_positive", "10", "10"),
    ("very_positive[]", "{10,NULL}", "[10,null]"),
    ("moods", "{happy}", '["happy"]'),
    ("moods[]", '{"{happy,NULL}",NULL}', '[["happy",null],null]'),
    ("document", '{"a": 1.0}', '{"a":1.0}'),
    ("document[]", '{"{\\"a\\": [1, 2]}"}', '[{"a":[1,2]}]'),
    ("instant", "2026-01-31 12:30:00.1239+00", '"2026-01-31T12:30:00.124Z"'),
    ("place", '(1,"a ""b"", c","2026-01-31 12:30+02")', '"(1,\\"a \\"\\"b\\"\\", c\\",\\"2026-01-31 10:30:00+00\\")"'),
    ("place[]", '{"(1,a,)",NULL}', '["(1,a,)",null]'),
]  # fmt: skip


def test_every_type(database: Database) -> None:
    with database.connect() as connection:
        connection.execute(TYPES)
        columns = sql.SQL(", ").join(
            sql.SQL("{} {}").format(sql.Identifier(name), sql.SQL(type_name))
            for name, (type_name, _, _) in zip(_names(), VALUES, strict=True)
        )
        connection.execute(sql.SQL("CREATE TABLE t (id int PRIMARY KEY, {})").format(columns))
        literals = sql.SQL(", ").join(sql.Literal(literal) for _, literal, _ in VALUES)
        connection.execute(sql.SQL("INSERT INTO t VALUES (1, {})").format(literals))
        connection.execute("INSERT INTO t VALUES (2)")
    values, nulls = sorted(both_ways(database, "t"))
    printed = ",".join(f'"{name}":{expected}' for name, (_, _, expected) in zip(_names(), VALUES, strict=True))
    assert values.decode() == f'"schema":"public","table":"t","key":{{"id":1}},"new":{{"id":1,{printed}}}'
    null = ",".join(f'"{name}":null' for name in _names())
    assert nulls.decode() == f'"schema":"public","table":"t","key":{{"id":2}},"new":{{"id":2,{null}}}'


def _names() -> list[str]:
    return [f"c{number}" for number in range(len(VALUES))]


@pytest.mark.parametrize(
    ("type_name", "literal", "expected"),
    [
        ("timestamptz", "2026-01-31 12:30+02", '"2026-01-31T10:30:00Z"'),
        ("float8", "-0", "-0.0"),
        ("text", 'a"\\\n🐘', '"a\\"\\\\\\n🐘"'),
        ("bytea", "\\x00", '"\\\\x00"'),
        ("int4[]", "{1,NULL}", "[1,null]"),
        ("jsonb", '{"a": [1.0]}', '{"a":[1.0]}'),
    ],
)
def test_keys_have_values_too(database18: Database, type_name: str, literal: str, expected: str) -> None:
    """A key's value is printed as it is in the row, under whatever identity, also in what was sent of the old row."""
    with database18.connect() as connection:
        connection.execute(sql.SQL("CREATE TABLE t (a int, id {} PRIMARY KEY)").format(sql.SQL(type_name)))
        connection.execute("INSERT INTO t VALUES (1, %s)", [literal])
    (body,) = both_ways(database18, "t")
    assert body.decode() == f'"schema":"public","table":"t","key":{{"id":{expected}}},"new":{{"a":1,"id":{expected}}}'
    with streaming(database18) as stream:
        stream.changes("DELETE FROM t")
        line = stream.tail.lines[-2]
    assert line.startswith(
        f'{{"op":"delete","schema":"public","table":"t","key":{{"id":{expected}}},'
        f'"old":{{"id":{expected}}},"old_kind":"key","commit_lsn":'.encode()
    )


def test_names_that_need_quotes(database: Database) -> None:
    schema, table = 'S.1 "x"', "Table.2 'y' ü 🐘"
    names = ["Id.3", 'a "b"', "\\", "new\nline", "null"]
    identifiers = [sql.Identifier(name) for name in names]
    with database.connect() as connection:
        connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
        connection.execute(
            sql.SQL("CREATE TABLE {} ({} int, {} text, {} text, {} text, {} text, PRIMARY KEY ({}, {}))").format(
                sql.Identifier(schema, table), *identifiers, identifiers[1], identifiers[0]
            )
        )
        insert = sql.SQL("INSERT INTO {} VALUES (1, 'v', %s, NULL, '')").format(sql.Identifier(schema, table))
        connection.execute(insert, ["\\"])
        quoted = sql.Identifier(schema, table).as_string(connection)
    (body,) = both_ways(database, quoted)
    assert body.decode() == (
        '"schema":"S.1 \\"x\\"","table":"Table.2 \'y\' ü 🐘","key":{"Id.3":1,"a \\"b\\"":"v"},'
        '"new":{"Id.3":1,"a \\"b\\"":"v","\\\\":"\\\\","new\\nline":null,"null":""}'
    )


def test_dropped_and_generated_columns(database: Database) -> None:
    database.psql("""
        CREATE TABLE t (gone1 int, a text, twice int GENERATED ALWAYS AS (id * 2) STORED, id int PRIMARY KEY,
                        gone2 text);
        INSERT INTO t (gone1, a, id, gone2) VALUES (1, 'x', 1, 'y');
        ALTER TABLE t DROP gone1, DROP gone2, ADD added int DEFAULT 5, ADD "A" text;
        INSERT INTO t (a, id, "A") VALUES (NULL, 2, 'z');
    """)
    assert [body.decode() for body in sorted(both_ways(database, "t"))] == [
        '"schema":"public","table":"t","key":{"id":1},"new":{"a":"x","id":1,"added":5,"A":null}',
        '"schema":"public","table":"t","key":{"id":2},"new":{"a":null,"id":2,"added":5,"A":"z"}',
    ]


def test_large_values(database: Database) -> None:
    """A megabyte of text, of bytes, of an array and of JSON, in one row that is several, and many times a buffer."""
    database.psql("""
        CREATE TABLE t (id int PRIMARY KEY, body text, bytes bytea, list text[], document jsonb);
        INSERT INTO t SELECT n, repeat('ü🐘"\\' || chr(10), 100000), decode(repeat('00ff', 250000), 'hex'),
                             array_fill('a "b"'::text, ARRAY[30000]), jsonb_build_object('k', repeat('v: ', 300000))
          FROM generate_series(1, 2) n;
    """)
    reads = sorted(both_ways(database, "t"))
    row = json.loads(b"{" + reads[0] + b"}")["new"]
    assert row["body"] == 'ü🐘"\\\n' * 100_000
    assert row["bytes"] == "\\x" + "00ff" * 250_000
    assert row["list"] == ['a "b"'] * 30_000
    assert row["document"] == {"k": "v: " * 300_000}
    assert len(reads) == 2


def test_every_byte_of_text(database: Database) -> None:
    """Every character below 0x800 and some beyond, alone and beside a backslash."""
    with database.connect() as connection:
        connection.execute("CREATE TABLE t (id int PRIMARY KEY, a text, b text[])")
        points = [*range(1, 0x800), 0xFFFD, 0xFFFF, 0x10000, 0x1F418, 0x10FFFF]
        with connection.cursor().copy("COPY t FROM STDIN") as copy:
            for point in points:
                copy.write_row([point, chr(point), [chr(point), "\\" + chr(point)]])
    for body in both_ways(database, "t"):
        row = json.loads(b"{" + body + b"}")["new"]
        assert row["a"] == chr(row["id"])
        assert row["b"] == [chr(row["id"]), "\\" + chr(row["id"])]
