"""What the text of a column means, as far as JSON tells values apart."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

FIRST_UNSTABLE_OID: Final = 10000
"""Types below have the same OID in every server; those above must be looked up in ``pg_type``.

From here to 16383 are the objects that initdb numbers anew in every version (row types of catalogs, domains of
information_schema), from 16384 the user's (PostgreSQL's source, access/transam.h, FirstGenbkiObjectId).
"""


class Kind(Enum):
    """How a value is written in JSON."""

    BOOL = "bool"
    NUMBER = "number"
    """int2, int4, int8 and oid; numeric is TEXT, so that it stays exact."""
    FLOAT = "float"
    JSON = "json"
    TIMESTAMP = "timestamp"
    TIMESTAMPTZ = "timestamptz"
    TEXT = "text"
    """Everything that has no better form than its text."""
    ARRAY = "array"


@dataclass(frozen=True, slots=True)
class ValueType:
    """The meaning of a column's text; hashable, so that what is made for a type can be kept.

    A domain has the ValueType of its base type. A type is an ARRAY when some ``pg_type.typarray`` points at it; then
    ``element`` is the type it points from and ``delimiter`` that type's ``typdelim`` (``;`` for box, else ``,``). So
    int2vector and oidvector, which no typarray points at, are TEXT.
    """

    kind: Kind
    element: ValueType | None = None
    delimiter: str = ","


TEXT: Final = ValueType(Kind.TEXT)

# name: (oid, oid of its array). Those of kind TEXT are here for the sake of their arrays.
_BUILTIN_TYPES: Final = {
    Kind.BOOL: {"bool": (16, 1000)},
    Kind.NUMBER: {"int2": (21, 1005), "int4": (23, 1007), "int8": (20, 1016), "oid": (26, 1028)},
    Kind.FLOAT: {"float4": (700, 1021), "float8": (701, 1022)},
    Kind.JSON: {"json": (114, 199), "jsonb": (3802, 3807)},
    Kind.TIMESTAMP: {"timestamp": (1114, 1115)},
    Kind.TIMESTAMPTZ: {"timestamptz": (1184, 1185)},
    Kind.TEXT: {
        "bytea": (17, 1001),
        "char": (18, 1002),
        "name": (19, 1003),
        "int2vector": (22, 1006),
        "regproc": (24, 1008),
        "text": (25, 1009),
        "tid": (27, 1010),
        "xid": (28, 1011),
        "cid": (29, 1012),
        "oidvector": (30, 1013),
        "pg_type": (71, 210),
        "pg_attribute": (75, 270),
        "pg_proc": (81, 272),
        "pg_class": (83, 273),
        "xml": (142, 143),
        "point": (600, 1017),
        "lseg": (601, 1018),
        "path": (602, 1019),
        "box": (603, 1020),
        "polygon": (604, 1027),
        "line": (628, 629),
        "cidr": (650, 651),
        "circle": (718, 719),
        "macaddr8": (774, 775),
        "money": (790, 791),
        "macaddr": (829, 1040),
        "inet": (869, 1041),
        "aclitem": (1033, 1034),
        "bpchar": (1042, 1014),
        "varchar": (1043, 1015),
        "date": (1082, 1182),
        "time": (1083, 1183),
        "interval": (1186, 1187),
        "timetz": (1266, 1270),
        "bit": (1560, 1561),
        "varbit": (1562, 1563),
        "numeric": (1700, 1231),
        "refcursor": (1790, 2201),
        "regprocedure": (2202, 2207),
        "regoper": (2203, 2208),
        "regoperator": (2204, 2209),
        "regclass": (2205, 2210),
        "regtype": (2206, 2211),
        "record": (2249, 2287),
        "cstring": (2275, 1263),
        "uuid": (2950, 2951),
        "txid_snapshot": (2970, 2949),
        "pg_lsn": (3220, 3221),
        "tsvector": (3614, 3643),
        "tsquery": (3615, 3645),
        "gtsvector": (3642, 3644),
        "regconfig": (3734, 3735),
        "regdictionary": (3769, 3770),
        "int4range": (3904, 3905),
        "numrange": (3906, 3907),
        "tsrange": (3908, 3909),
        "tstzrange": (3910, 3911),
        "daterange": (3912, 3913),
        "int8range": (3926, 3927),
        "jsonpath": (4072, 4073),
        "regnamespace": (4089, 4090),
        "regrole": (4096, 4097),
        "regcollation": (4191, 4192),
        "int4multirange": (4451, 6150),
        "nummultirange": (4532, 6151),
        "tsmultirange": (4533, 6152),
        "tstzmultirange": (4534, 6153),
        "datemultirange": (4535, 6155),
        "int8multirange": (4536, 6157),
        "pg_snapshot": (5038, 5039),
        "xid8": (5069, 271),
    },
}
_DELIMITERS: Final = {"box": ";"}


def _builtin_types() -> dict[int, ValueType]:
    types = {}
    for kind, names in _BUILTIN_TYPES.items():
        element = ValueType(kind)
        for name, (oid, array_oid) in names.items():
            if element != TEXT:
                types[oid] = element
            types[array_oid] = ValueType(Kind.ARRAY, element, _DELIMITERS.get(name, ","))
    return types


BUILTIN: Final = _builtin_types()
"""By OID, every type below FIRST_UNSTABLE_OID that is not TEXT."""


def builtin_type(oid: int) -> ValueType | None:
    """Return what a type means that has the same OID in every server, or None when the catalog must be asked."""
    return BUILTIN.get(oid, TEXT) if oid < FIRST_UNSTABLE_OID else None
