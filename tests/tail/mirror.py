"""A mirror of tables, made of nothing but printed lines, and the workload it is measured by.

The mirror is strict: a row that is inserted twice, or changed or deleted without being there, is an error. So it shows
what is lost, what comes twice and what comes in the wrong order.
"""

from __future__ import annotations

import json
import random
import threading
from collections import Counter
from collections.abc import Iterable
from typing import Any

import psycopg

from tests.servers.database import Database

TABLES = ("plain", "composite", "keyless", "Mixed Case", "parts")

SCHEMA = """
CREATE TABLE plain (id int PRIMARY KEY, note text, amount numeric(10,2), tags int[], doc jsonb, big text);
ALTER TABLE plain ALTER big SET STORAGE EXTERNAL;
CREATE TABLE composite (b int, a text, n bigint, PRIMARY KEY (a, b));
CREATE TABLE keyless (n int, note text);
ALTER TABLE keyless REPLICA IDENTITY FULL;
CREATE TABLE "Mixed Case" ("the Id" int NOT NULL, "a.b" text);
CREATE UNIQUE INDEX mixed ON "Mixed Case" ("the Id");
ALTER TABLE "Mixed Case" REPLICA IDENTITY USING INDEX mixed;
CREATE TABLE parts (id int, region int, note text, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
CREATE TABLE parts_0 PARTITION OF parts FOR VALUES IN (0);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES IN (1, 2);
CREATE TABLE marker (id int PRIMARY KEY);
CREATE TABLE unpublished (id int);
CREATE PUBLICATION mirrored FOR TABLE plain, composite, keyless, "Mixed Case", parts, marker
    WITH (publish_via_partition_root = true);
"""


class Mirror:
    """Tables as the printed lines make them."""

    def __init__(self) -> None:
        self.keyed: dict[str, dict[str, dict[str, Any]]] = {}
        self.keyless: Counter[str] = Counter()
        # The last change of each table; while others are copied a table may be ahead of them.
        self.last: dict[str, tuple[int, int, int]] = {}

    def apply(self, lines: Iterable[dict[str, Any]]) -> Mirror:
        """Apply events in the order in which they were printed."""
        for line in lines:
            self._apply(line)
        return self

    def _apply(self, line: dict[str, Any]) -> None:
        op = line["op"]
        if op == "truncate":
            for table in line["tables"]:
                self._clear(table["table"])
        elif op == "snapshot_begin":
            self._clear(line["table"])
        elif op == "schema":
            self._columns(line["table"], [column["name"] for column in line["columns"]])
        elif op in ("insert", "update", "delete", "read"):
            self._row(op, line["table"], line)
        # A message and a schema event carry the number of the next change.
        if "commit_lsn" in line and op not in ("message", "schema"):
            high, low = (int(half, 16) for half in line["commit_lsn"].split("/"))
            place = (high, low, line["seq"])
            for table in line.get("tables", [line]):
                last = self.last.get(table["table"], (0, 0, -1))
                assert place > last, f"{place} after {last}: {line}"
                self.last[table["table"]] = place

    def _clear(self, table: str) -> None:
        if table == "keyless":
            self.keyless.clear()
        else:
            self.keyed[table] = {}

    def _columns(self, name: str, columns: list[str]) -> None:
        """Give each row the columns of now; one that was added is empty, since the workload gives no default."""
        rows = self.keyed.get(name, {})
        rows.update({key: {column: row.get(column) for column in columns} for key, row in rows.items()})

    def _row(self, op: str, name: str, line: dict[str, Any]) -> None:
        if name == "keyless":
            if op in ("update", "delete"):
                old = _text(line["old"])
                assert self.keyless[old] > 0, f"{op} of a row that is not there: {line}"
                self.keyless[old] -= 1
            if op != "delete":
                self.keyless[_text(line["new"])] += 1
            return
        table = self.keyed.setdefault(name, {})
        key = _text(line["key"])
        if op in ("read", "insert"):
            assert key not in table, f"{op} of a row that is there: {line}"
            table[key] = line["new"]
            return
        old_key = _text(line["old"]) if "old" in line else key
        assert old_key in table, f"{op} of a row that is not there: {line}"
        before = table.pop(old_key)
        if op == "update":
            table[key] = line["new"] | {column: before[column] for column in line.get("unchanged", [])}

    def must_equal(self, database: Database) -> None:
        """Compare all tables with those of the server."""
        with database.connect() as connection:
            for table in TABLES:
                # An ALTER TABLE is told with the next change of the table, and there may have been none.
                self._columns(table, _columns(connection, table))
                assert self.rows(table) == source_rows(database, table), table

    def rows(self, table: str) -> Counter[str]:
        """The rows of a table, each as text."""
        if table == "keyless":
            return +self.keyless
        return Counter(_text(row) for row in self.keyed.get(table, {}).values())


def _columns(connection: psycopg.Connection, table: str) -> list[str]:
    query = """
        SELECT attname FROM pg_attribute
        WHERE attrelid = format('%%I', %s::text)::regclass AND attnum > 0 AND NOT attisdropped
    """
    return [name for (name,) in connection.execute(query, [table])]


def source_rows(database: Database, table: str) -> Counter[str]:
    """Read a table itself, without any code of pgrepl; the server's own JSON differs only in numeric."""
    with database.connect() as connection:
        query = psycopg.sql.SQL("SELECT to_json(t) FROM {} t").format(psycopg.sql.Identifier(table))
        rows = [row for (row,) in connection.execute(query)]
    for row in rows:
        if row.get("amount") is not None:
            row["amount"] = f"{row['amount']:.2f}"
    return Counter(_text(row) for row in rows)


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True)


class Writers:
    """Sessions that insert, update, delete, change keys, truncate and roll back until they are stopped.

    They rest for ``pause`` seconds after each transaction. With ``reconnect`` they live through crashes of the server.
    """

    def __init__(
        self, database: Database, count: int = 8, seed: int = 1, *, pause: float = 0.0, reconnect: bool = False
    ) -> None:
        self._database = database
        self._pause = pause
        self._reconnect = reconnect
        self._stop = threading.Event()
        self.transactions = 0
        self.kinds: Counter[str] = Counter()
        self.failures: list[BaseException] = []
        self._threads = [threading.Thread(target=self._write, args=(seed * 1000 + number,)) for number in range(count)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the sessions; raises what went wrong in one of them."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        for failure in self.failures:
            raise failure

    def _write(self, seed: int) -> None:
        dice = random.Random(seed)
        while not self._stop.is_set():
            try:
                with self._database.connect() as connection:
                    # They do get into each other's way, and the default of a second would make that all they do.
                    connection.execute("SET deadlock_timeout = '20ms'")
                    while not self._stop.wait(self._pause):
                        self._transaction(connection, dice)
            except BaseException as error:
                # A Rollback comes out where the rollback itself has failed.
                lost = isinstance(error, psycopg.OperationalError | psycopg.Rollback)
                if not (self._reconnect and lost):
                    self.failures.append(error)
                    return
                self._stop.wait(0.1)

    def _transaction(self, connection: psycopg.Connection, dice: random.Random) -> None:
        # A row that is locked while another session moves it to another partition cannot be waited for.
        expected = (
            psycopg.errors.UniqueViolation,
            psycopg.errors.DeadlockDetected,
            psycopg.errors.SerializationFailure,
        )
        try:
            with connection.transaction():
                for _ in range(dice.choice((1, 1, 2, 5, 40))):
                    if dice.random() < 0.1:
                        with connection.transaction(force_rollback=dice.random() < 0.5):
                            self._change(connection, dice)
                    else:
                        self._change(connection, dice)
                if dice.random() < 0.05:
                    raise psycopg.Rollback
            self.transactions += 1
        except expected:
            pass

    def _change(self, connection: psycopg.Connection, dice: random.Random) -> None:
        kind, statement = dice.choices(STATEMENTS, weights=WEIGHTS)[0]
        values = {"i": dice.randrange(2000), "j": dice.randrange(2000), "r": dice.randrange(3), "x": dice.random()}
        connection.execute(statement, values)
        self.kinds[kind] += 1


_SOME = "SELECT ctid FROM keyless LIMIT 1 FOR UPDATE SKIP LOCKED"
_CHANGES = [
    (
        "insert",
        30,
        "INSERT INTO plain VALUES (%(i)s, 'note ' || %(j)s, %(x)s::numeric * 1000, ARRAY[%(i)s, NULL, %(j)s],"
        " jsonb_build_object('j', %(j)s::int, 'deep', ARRAY['x', NULL]), repeat('x', %(j)s * 4))"
        " ON CONFLICT DO NOTHING",
    ),
    ("insert", 20, "INSERT INTO composite VALUES (%(i)s, 'k' || %(r)s, %(j)s) ON CONFLICT DO NOTHING"),
    ("insert", 10, "INSERT INTO keyless VALUES (%(r)s, CASE WHEN %(i)s > 500 THEN 'tab' || chr(9) || chr(92) END)"),
    ("insert", 10, """INSERT INTO "Mixed Case" VALUES (%(i)s, '"' || %(j)s) ON CONFLICT DO NOTHING"""),
    ("insert", 10, "INSERT INTO parts VALUES (%(i)s, %(r)s, 'p' || %(j)s) ON CONFLICT DO NOTHING"),
    ("insert", 5, "INSERT INTO unpublished VALUES (%(i)s)"),
    ("update", 20, "UPDATE plain SET note = 'again ' || %(j)s WHERE id = %(i)s"),
    ("update", 10, "UPDATE composite SET n = n + 1 WHERE b = %(i)s"),
    (
        "update",
        5,
        f"UPDATE keyless SET note = 'u' || %(j)s WHERE ctid = ({_SOME})",
    ),
    ("update", 5, """UPDATE "Mixed Case" SET "a.b" = NULL WHERE "the Id" = %(i)s"""),
    ("key", 8, "UPDATE plain SET id = 2000 + %(j)s WHERE id = %(i)s"),
    ("key", 5, "UPDATE composite SET a = a || 'z' WHERE b = %(i)s AND length(a) < 5"),
    ("key", 5, """UPDATE "Mixed Case" SET "the Id" = 2000 + %(j)s WHERE "the Id" = %(i)s"""),
    ("key", 5, "UPDATE parts SET region = %(r)s WHERE id = %(i)s"),
    ("delete", 10, "DELETE FROM plain WHERE id = %(i)s"),
    ("delete", 5, "DELETE FROM composite WHERE b = %(i)s"),
    ("delete", 3, f"DELETE FROM keyless WHERE ctid = ({_SOME})"),
    ("delete", 3, "DELETE FROM parts WHERE id = %(i)s"),
    ("truncate", 0.1, "TRUNCATE composite, keyless"),
    ("truncate", 0.1, "TRUNCATE parts"),
    ("truncate", 0.1, "TRUNCATE plain"),
]
STATEMENTS = [(kind, statement) for kind, _, statement in _CHANGES]
WEIGHTS = [weight for _, weight, _ in _CHANGES]
