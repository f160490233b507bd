"""Values as JSON: the table of docs/events.md, what may not fail, and what real servers print."""

from __future__ import annotations

import json
import math
import re
from datetime import datetime
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from psycopg import sql

from pgrepl.formats.values import encoder
from pgrepl.pgoutput.copytext import CopyRows
from pgrepl.pgoutput.decoder import decode
from pgrepl.pgoutput.messages import Insert, Relation
from pgrepl.pgoutput.types import Kind, ValueType, builtin_type
from tests.servers.database import Database

SESSION = (
    "-c DateStyle=ISO -c IntervalStyle=postgres -c TimeZone=UTC -c extra_float_digits=1 -c bytea_output=hex"
    " -c lc_monetary=C -c client_encoding=UTF8"
)


def kind(name: str) -> ValueType:
    return ValueType(Kind[name])


def array(name: str, delimiter: str = ",") -> ValueType:
    return ValueType(Kind.ARRAY, kind(name), delimiter)


def encoded(value_type: ValueType, text: str) -> str:
    return encoder(value_type)(text.encode()).decode()


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


@pytest.mark.parametrize(
    ("value_type", "text", "expected"),
    [
        ("BOOL", "t", "true"),
        ("BOOL", "f", "false"),
        ("BOOL", "true", '"true"'),
        ("NUMBER", "0", "0"),
        ("NUMBER", "-1", "-1"),
        ("NUMBER", "9223372036854775807", "9223372036854775807"),
        ("NUMBER", "007", '"007"'),
        ("NUMBER", "-", '"-"'),
        ("NUMBER", "1.5", '"1.5"'),
        ("NUMBER", "1\n", '"1\\n"'),
        ("NUMBER", "٣", '"٣"'),
        ("FLOAT", "1", "1"),
        ("FLOAT", "0.1", "0.1"),
        ("FLOAT", "1e+20", "1e+20"),
        ("FLOAT", "-1.5e-07", "-1.5e-07"),
        ("FLOAT", "-0", "-0.0"),
        ("FLOAT", "0", "0"),
        ("FLOAT", "NaN", '"NaN"'),
        ("FLOAT", "Infinity", '"Infinity"'),
        ("FLOAT", "-Infinity", '"-Infinity"'),
        ("FLOAT", ".5", '".5"'),
        ("FLOAT", "1.\n", '"1.\\n"'),
        ("JSON", '{"b": 1, "a": [1, 2.50, 1E5]}', '{"b":1,"a":[1,2.50,1E5]}'),
        ("JSON", '{"b": 1, "a": [true, null]}', '{"b":1,"a":[true,null]}'),
        ("JSON", ' {\n\t"a" :\r\n 1 } ', '{"a":1}'),
        ("JSON", '{"a, b: c": "d, e: f"}', '{"a, b: c":"d, e: f"}'),
        ("JSON", '["\\", [ 1 , \\\\", " "]', '["\\", [ 1 , \\\\"," "]'),
        ("JSON", '"\\ud800 \\u00e4 \\/"', '"\\ud800 \\u00e4 \\/"'),
        ("JSON", '{"a": 1, "a": 2}', '{"a":1,"a":2}'),
        ("JSON", "0.12345678901234565", "0.12345678901234565"),
        ("JSON", "123456789012345678901234567890", "123456789012345678901234567890"),
        ("JSON", "9007199254740993.0", "9007199254740993.0"),
        ("JSON", "1e999", "1e999"),
        ("JSON", "1" * 5000, "1" * 5000),
        ("JSON", "[" * 3000 + " " + "]" * 3000, "[" * 3000 + "]" * 3000),
        ("JSON", "null", "null"),
        ("JSON", '"🐘 ä"', '"🐘 ä"'),
        ("JSON", "", '""'),
        ("JSON", '{"a": ', '"{\\"a\\": "'),
        ("JSON", '["\\ud800", NaN]', '"[\\"\\\\ud800\\", NaN]"'),
        ("JSON", '["\\ud800" "', '"[\\"\\\\ud800\\" \\""'),
        ("TIMESTAMP", "2026-01-31 12:30:00", '"2026-01-31T12:30:00"'),
        ("TIMESTAMP", "2026-01-31 12:30:00.5", '"2026-01-31T12:30:00.5"'),
        ("TIMESTAMP", "infinity", '"infinity"'),
        ("TIMESTAMP", "-infinity", '"-infinity"'),
        ("TIMESTAMP", "0044-03-15 12:00:00 BC", '"0044-03-15 12:00:00 BC"'),
        ("TIMESTAMP", "10000-01-01 00:00:00", '"10000-01-01 00:00:00"'),
        ("TIMESTAMPTZ", "2026-01-31 12:30:00.123456+00", '"2026-01-31T12:30:00.123456Z"'),
        ("TIMESTAMPTZ", "2026-01-31 12:30:00+00", '"2026-01-31T12:30:00Z"'),
        ("TIMESTAMPTZ", "2026-01-31 12:30:00+02", '"2026-01-31 12:30:00+02"'),
        ("TIMESTAMPTZ", "0044-03-15 12:00:00+00 BC", '"0044-03-15 12:00:00+00 BC"'),
        ("TIMESTAMPTZ", "294276-12-31 23:59:59+00", '"294276-12-31 23:59:59+00"'),
        ("TEXT", "", '""'),
        ("TEXT", '\\N "\x01\x1f\x7f\n\t🐘\u2028', '"\\\\N \\"\\u0001\\u001f\x7f\\n\\t🐘\u2028"'),
        ("TEXT", "12345678901234567890.10", '"12345678901234567890.10"'),
    ],
)
def test_scalar(value_type: str, text: str, expected: str) -> None:
    assert encoded(kind(value_type), text) == expected
    assert encoded(array(value_type), "{" + quoted_element(text) + "}") == "[" + expected + "]"


def quoted_element(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


@pytest.mark.parametrize(
    ("value_type", "text", "expected"),
    [
        (array("NUMBER"), "{}", "[]"),
        (array("NUMBER"), "{1,2,NULL}", "[1,2,null]"),
        (array("NUMBER"), "{{1,2},{3,NULL}}", "[[1,2],[3,null]]"),
        (array("NUMBER"), "{{{1}},{{2}}}", "[[[1]],[[2]]]"),
        (array("NUMBER"), "[0:1]={1,2}", '"[0:1]={1,2}"'),
        (array("NUMBER"), "[0:0][1:2]={{1,2}}", '"[0:0][1:2]={{1,2}}"'),
        (array("FLOAT"), "{-0,NaN,1e+20}", '[-0.0,"NaN",1e+20]'),
        (array("BOOL"), "{t,f}", "[true,false]"),
        (array("TEXT"), '{NULL,"NULL","null",""}', '[null,"NULL","null",""]'),
        (array("TEXT"), '{"a,b","{","}","\\"","\\\\",c}', '["a,b","{","}","\\"","\\\\","c"]'),
        (array("TEXT"), '{{a,"b c"},{NULL,🐘}}', '[["a","b c"],[null,"🐘"]]'),
        (array("TEXT", ";"), "{(1,1),(0,0);(2,2),(1,1)}", '["(1,1),(0,0)","(2,2),(1,1)"]'),
        (array("TEXT", ";"), '{{(1,1);NULL};{"(;)";b}}', '[["(1,1)",null],["(;)","b"]]'),
        (array("JSON"), '{"{\\"a\\": [1, 2.0]}",1,NULL}', '[{"a":[1,2.0]},1,null]'),
        (array("TIMESTAMP"), '{"2026-01-31 12:30:00",infinity}', '["2026-01-31T12:30:00","infinity"]'),
        # An array of a domain over arrays.
        (ValueType(Kind.ARRAY, array("NUMBER")), '{"{1,2}","{}",NULL}', "[[1,2],[],null]"),
    ],
)
def test_array(value_type: ValueType, text: str, expected: str) -> None:
    assert encoded(value_type, text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "}", "{1", "1}", "1", "{1}}", "{{1}", "{1,}", "{,1}", "{1,,2}", "{,}", "{{}}", "{{1},}", "{1}{2}",
        "{1},{2}", '{"a}', '{"a"b}', '{a"b"}', "{a\\b}", '{"a"}x', ' {"a"}', "{{1},2}", "{1,{2}}", '{"a\\', '{"a"}\\',
        "{{1}{2}}",
    ],
)  # fmt: skip
def test_what_is_no_array_is_its_text(text: str) -> None:
    assert encoded(array("TEXT"), text) == quoted(text)


def test_bytes_that_are_not_utf8_are_spelt_out() -> None:
    assert encoder(kind("TEXT"))(b'a\xff"\xc3') == b'"a\\\\xff\\"\\\\xc3"'
    assert encoder(kind("JSON"))(b'"a\xff"') == b'"\\"a\\\\xff\\""'
    assert encoder(array("TEXT"))(b"{a,\xff}") == b'["a","\\\\xff"]'


_scalars = st.sampled_from([kind(kind_.name) for kind_ in Kind if kind_ is not Kind.ARRAY])
_types = st.recursive(
    _scalars, lambda element: st.builds(ValueType, st.just(Kind.ARRAY), element, st.sampled_from(",;"))
)
_likely = st.text(st.sampled_from('{}[],;:"\\ NULtf01.-+eE\n\t🐘')).map(str.encode)


@given(_types, st.binary() | _likely)
@settings(max_examples=500)
def test_a_value_never_fails(value_type: ValueType, text: bytes) -> None:
    value = encoder(value_type)(text)
    json.loads(value.decode())
    assert b"\n" not in value


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(_json, st.booleans(), st.sampled_from([None, 0, 3, "\t"]))
def test_json_without_its_whitespace(value: Any, ascii_only: bool, indent: int | str | None) -> None:
    spaced = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    compact = json.dumps(value, ensure_ascii=ascii_only, separators=(",", ":"))
    assert encoded(kind("JSON"), spaced) == compact


_texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)
_elements = st.none() | _texts | st.sampled_from(["NULL", "null", "", " ", '"', "\\", "{}", ",", "a,b"])
_nested = st.tuples(st.integers(1, 3), st.integers(1, 3)).flatmap(
    lambda shape: st.lists(
        st.lists(_elements, min_size=shape[1], max_size=shape[1]), min_size=shape[0], max_size=shape[0]
    )
)
_stored_json = st.recursive(
    st.none() | st.booleans() | st.integers() | _texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_texts, inner, max_size=4),
)


def ask(connection: psycopg.Connection, type_name: str, value: Any) -> Any:
    """Let the server read a value, print it, and return what the printed text becomes."""
    statement = sql.SQL("SELECT %s::{0}::text, %s::{0}").format(sql.SQL(type_name))
    cursor = connection.execute(statement, [value, value])
    assert cursor.description is not None
    value_type = builtin_type(cursor.description[1].type_code)
    assert value_type is not None
    ((text, _),) = cursor.fetchall()
    return json.loads(encoder(value_type)(text.encode()))


def test_random_values_through_a_server(database: Database) -> None:
    with database.connect(options=SESSION, client_encoding="UTF8") as connection:

        @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(
            st.lists(_elements, max_size=6) | _nested,
            _stored_json,
            st.floats(),
            st.lists(st.integers(-(2**63), 2**63 - 1) | st.none(), max_size=5),
            st.datetimes(),
        )
        @example([], {"a, b": ": "}, -0.0, [], datetime(1, 1, 1))
        def check(texts: Any, document: Any, number: float, integers: Any, moment: Any) -> None:
            assert ask(connection, "text[]", texts) == texts
            assert ask(connection, "int8[]", integers) == integers
            written = json.dumps(document)
            assert ask(connection, "json", written) == document
            assert ask(connection, "jsonb", written) == document
            assert ask(connection, "jsonb[]", [written, None]) == [document, None]
            returned = ask(connection, "float8", number)
            if math.isfinite(number):
                assert returned == number
                assert math.copysign(1, returned) == math.copysign(1, number)
            else:
                assert returned == {math.inf: "Infinity", -math.inf: "-Infinity"}.get(number, "NaN")
            iso = moment.isoformat(timespec="microseconds")
            shortened = re.sub(r"\.?0*$", "", iso) if moment.microsecond else moment.isoformat(timespec="seconds")
            assert ask(connection, "timestamp", moment) == shortened
            assert ask(connection, "timestamptz", iso + "+00") == shortened + "Z"

        check()


USER_TYPES = """
    CREATE TYPE mood AS ENUM ('happy', 'so "sad"');
    CREATE DOMAIN positive AS int CHECK (VALUE > 0);
    CREATE DOMAIN document AS jsonb;
    CREATE DOMAIN pair AS int[];
    CREATE TYPE point3 AS (x int, name text, at timestamp);
    CREATE TYPE textrange AS RANGE (subtype = text);
"""
# A type, a literal of it, what the type means where it is not built in, and the JSON.
VALUES: list[tuple[str, str, ValueType | None, str]] = [
    ("bool", "true", None, "true"),
    ("bool[]", "{t,f,NULL}", None, "[true,false,null]"),
    ("int2", "-32768", None, "-32768"),
    ("int4", "0", None, "0"),
    ("int8", "9223372036854775807", None, "9223372036854775807"),
    ("int8[]", "{{1,2},{3,4}}", None, "[[1,2],[3,4]]"),
    ("int4[]", "[5:6]={1,2}", None, '"[5:6]={1,2}"'),
    ("oid", "4294967295", None, "4294967295"),
    ("oid[]", "{1}", None, "[1]"),
    ("float4", "0.1", None, "0.1"),
    ("float8", "0.1", None, "0.1"),
    ("float8", "1e300", None, "1e+300"),
    ("float8", "-0", None, "-0.0"),
    ("float8", "NaN", None, '"NaN"'),
    ("float4", "-Infinity", None, '"-Infinity"'),
    ("float8[]", "{1.5,NaN,-0,NULL}", None, '[1.5,"NaN",-0.0,null]'),
    ("numeric", "12345678901234567890.10", None, '"12345678901234567890.10"'),
    ("numeric(12,2)", "1.5", None, '"1.50"'),
    ("numeric", "NaN", None, '"NaN"'),
    ("numeric", "-Infinity", None, '"-Infinity"'),
    ("numeric[]", "{1.10,NULL}", None, '["1.10",null]'),
    ("json", '{ "b" : [1.0, 1E5],\n "b": "\\ud800 , " }', None, '{"b":[1.0,1E5],"b":"\\ud800 , "}'),
    ("jsonb", '{"b": [1.0, 1e5], "a": "x, y: z"}', None, '{"a":"x, y: z","b":[1.0,100000]}'),
    ("jsonb", "null", None, "null"),
    ("jsonb[]", '{"{\\"a\\": 1}",NULL,null}', None, '[{"a":1},null,null]'),
    ("date", "2026-01-31", None, '"2026-01-31"'),
    ("date", "0044-03-15 BC", None, '"0044-03-15 BC"'),
    ("date", "infinity", None, '"infinity"'),
    ("date[]", "{2026-01-31}", None, '["2026-01-31"]'),
    ("time", "12:30:00.50", None, '"12:30:00.5"'),
    ("time", "24:00:00", None, '"24:00:00"'),
    ("timetz", "12:30:00+02", None, '"12:30:00+02"'),
    ("timestamp", "2026-01-31 12:30:00.5", None, '"2026-01-31T12:30:00.5"'),
    ("timestamp", "infinity", None, '"infinity"'),
    ("timestamp", "0044-03-15 12:00 BC", None, '"0044-03-15 12:00:00 BC"'),
    ("timestamp", "10000-01-01", None, '"10000-01-01 00:00:00"'),
    ("timestamp[]", '{"2026-01-31 12:30:00",-infinity}', None, '["2026-01-31T12:30:00","-infinity"]'),
    ("timestamptz", "2026-01-31 14:30:00.5+02", None, '"2026-01-31T12:30:00.5Z"'),
    ("timestamptz", "-infinity", None, '"-infinity"'),
    ("timestamptz", "0044-03-15 12:00+00 BC", None, '"0044-03-15 12:00:00+00 BC"'),
    ("timestamptz", "20000-01-01 00:00+00", None, '"20000-01-01 00:00:00+00"'),
    ("timestamptz[]", '{"2026-01-31 12:30+00"}', None, '["2026-01-31T12:30:00Z"]'),
    ("interval", "1 year 2 days 03:00", None, '"1 year 2 days 03:00:00"'),
    ("interval[]", '{"1 day",NULL}', None, '["1 day",null]'),
    ("money", "1234.5", None, '"$1,234.50"'),
    ("money[]", '{"$1,234.50"}', None, '["$1,234.50"]'),
    ("bytea", "\\x00ff", None, '"\\\\x00ff"'),
    ("bytea", "", None, '"\\\\x"'),
    ("bytea[]", '{"\\\\x00"}', None, '["\\\\x00"]'),
    ("uuid", "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", None, '"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"'),
    ("text", "", None, '""'),
    ("text", "\\N", None, '"\\\\N"'),
    ("text", '\x01\b\f\n\r\t\v\x1f\x7f "\\/🐘', None, '"\\u0001\\b\\f\\n\\r\\t\\u000b\\u001f\x7f \\"\\\\/🐘"'),
    ("varchar(5)", "ab", None, '"ab"'),
    ("char(5)", "ab", None, '"ab   "'),
    ('"char"', "a", None, '"a"'),
    ("name", "n", None, '"n"'),
    ("text[]", '{NULL,"NULL","","a\\"\\\\,{}",🐘,"\n\t"}', None, '[null,"NULL","","a\\"\\\\,{}","🐘","\\n\\t"]'),
    ("char(3)[]", "{a}", None, '["a  "]'),
    ("inet", "10.0.0.1/8", None, '"10.0.0.1/8"'),
    ("cidr", "10.0.0.0/8", None, '"10.0.0.0/8"'),
    ("macaddr", "08:00:2b:01:02:03", None, '"08:00:2b:01:02:03"'),
    ("macaddr8", "08:00:2b:01:02:03:04:05", None, '"08:00:2b:01:02:03:04:05"'),
    ("bit(3)", "101", None, '"101"'),
    ("varbit", "10", None, '"10"'),
    ("bit(2)[]", "{10,NULL}", None, '["10",null]'),
    ("point", "(1,2)", None, '"(1,2)"'),
    ("line", "{1,2,3}", None, '"{1,2,3}"'),
    ("lseg", "[(1,2),(3,4)]", None, '"[(1,2),(3,4)]"'),
    ("box", "(3,4),(1,2)", None, '"(3,4),(1,2)"'),
    ("box[]", "{(3,4),(1,2);(1,1),(0,0)}", None, '["(3,4),(1,2)","(1,1),(0,0)"]'),
    ("path", "((1,2),(3,4))", None, '"((1,2),(3,4))"'),
    ("polygon", "((1,2),(3,4))", None, '"((1,2),(3,4))"'),
    ("circle", "<(1,2),3>", None, '"<(1,2),3>"'),
    ("point[]", '{"(1,2)"}', None, '["(1,2)"]'),
    ("tsvector", "a:1 'b c':2", None, "\"'a':1 'b c':2\""),
    ("tsquery", "a & b", None, "\"'a' & 'b'\""),
    ("pg_lsn", "0/16B3748", None, '"0/16B3748"'),
    ("int2vector", "1 2", None, '"1 2"'),
    ("oidvector", "1 2", None, '"1 2"'),
    ("int2vector[]", '{"1 2"}', None, '["1 2"]'),
    ("xid", "7", None, '"7"'),
    ("xid8", "7", None, '"7"'),
    ("regtype", "integer", None, '"integer"'),
    ("jsonpath", "$.a", None, '"$.\\"a\\""'),
    ("int4range", "[1,5)", None, '"[1,5)"'),
    ("tstzrange", "[2026-01-31 00:00+00,)", None, '"[\\"2026-01-31 00:00:00+00\\",)"'),
    ("int4range[]", '{"[1,5)",empty}', None, '["[1,5)","empty"]'),
    ("int4multirange", "{[1,5),[7,9)}", None, '"{[1,5),[7,9)}"'),
    ("numrange", "empty", None, '"empty"'),
    ("public.textrange", "[a,b)", kind("TEXT"), '"[a,b)"'),
    ("public.mood", 'so "sad"', kind("TEXT"), '"so \\"sad\\""'),
    ("public.mood[]", '{happy,"so \\"sad\\"",NULL}', array("TEXT"), '["happy","so \\"sad\\"",null]'),
    ("public.positive", "5", kind("NUMBER"), "5"),
    ("public.positive[]", "{5,NULL}", array("NUMBER"), "[5,null]"),
    ("public.document", '{"a": 1.0}', kind("JSON"), '{"a":1.0}'),
    ("public.pair", "{1,2}", array("NUMBER"), "[1,2]"),
    ("public.pair[]", '{"{1,2}",NULL}', ValueType(Kind.ARRAY, array("NUMBER")), "[[1,2],null]"),
    ("public.point3", '(1,"a ""b""",)', kind("TEXT"), '"(1,\\"a \\"\\"b\\"\\"\\",)"'),
    ("public.point3[]", '{"(1,a,)",NULL}', array("TEXT"), '["(1,a,)",null]'),
]
# Not every server is built with libxml.
XML: tuple[str, str, ValueType | None, str] = ("xml", "<a b='\"'>&amp;</a>", None, '"<a b=\'\\"\'>&amp;</a>"')


def knows_xml(connection: psycopg.Connection) -> bool:
    try:
        connection.execute("SELECT '<a/>'::xml")
    except psycopg.errors.FeatureNotSupported:
        return False
    return True


def test_every_type_in_snapshot_and_stream(database: Database) -> None:
    with database.connect(options=f"{SESSION} -c search_path=", client_encoding="UTF8") as connection:
        connection.execute(f"SET search_path = public; {USER_TYPES}; SET search_path = ''")
        values = [*VALUES, XML] if knows_xml(connection) else VALUES
        definition = ", ".join(f"c{number} {type_name}" for number, (type_name, _, _, _) in enumerate(values))
        connection.execute(f"CREATE TABLE public.t ({definition}); CREATE PUBLICATION p FOR TABLE public.t")
        connection.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [database.name])
        literals = sql.SQL(", ").join(sql.Literal(literal) for _, literal, _, _ in values)
        connection.execute(sql.SQL("INSERT INTO public.t VALUES ({})").format(literals))
        rows = CopyRows(len(values))
        with connection.cursor().copy("COPY public.t TO STDOUT") as copy:
            (snapshot,) = [row for chunk in copy for row in rows.feed(bytes(chunk))]
        changes = connection.cursor(binary=True).execute(
            "SELECT data FROM pg_logical_slot_peek_binary_changes"
            "(%s, NULL, NULL, 'proto_version', '1', 'publication_names', 'p')",
            [database.name],
        )
        messages = [decode(data) for (data,) in changes]
    (relation,) = [message for message in messages if isinstance(message, Relation)]
    (insert,) = [message for message in messages if isinstance(message, Insert)]
    assert insert.new == snapshot
    for column, text, value in zip(relation.columns, snapshot, values, strict=True):
        type_name, literal, value_type, expected = value
        meaning = value_type or builtin_type(column.type_oid)
        assert meaning is not None
        assert text is not None
        assert encoder(meaning)(text).decode() == expected, (type_name, literal)
        json.loads(expected)


def test_a_megabyte() -> None:
    text = '🐘"\\\n' * 150_000
    assert json.loads(encoded(kind("TEXT"), text)) == text
    assert json.loads(encoded(array("TEXT"), "{" + quoted_element(text) + "}")) == [text]
    assert json.loads(encoded(kind("JSON"), json.dumps({"a": text}, indent=1))) == {"a": text}
