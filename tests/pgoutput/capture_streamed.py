"""Capture blocks of transactions that are going on: ``python -m tests.pgoutput.capture_streamed DSN`` writes a file.

``captures/streamed/pgNN.jsonl`` holds one message of protocol version 2 a line (hexadecimal), beside the xid and the
message that it is. The DSN names an empty database.
"""

from __future__ import annotations

import json
import sys

import psycopg

from pgrepl.pgoutput.decoder import StreamDecoder
from tests.pgoutput.capture import CAPTURES
from tests.pgoutput.reading import Reader, new_slot

STREAMED = CAPTURES / "streamed"

_SCHEMA = """
    CREATE TABLE t (id int PRIMARY KEY, name text);
    CREATE TABLE emptied (id int PRIMARY KEY);
    CREATE TABLE other (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY);
    CREATE TYPE mood AS ENUM ('happy');
    CREATE TABLE typed (id int PRIMARY KEY, mood mood);
    CREATE TABLE filler (id int);
    CREATE PUBLICATION shown FOR TABLE t, emptied, other, typed;
"""

# Changes of a table that is not published fill the memory of the decoder as well, and nothing of them is sent.
FILL = "INSERT INTO filler SELECT generate_series(1, 1000)"

# After each step that ends in FILL the server sends a block, before the transaction of the other session.
_STEPS = (
    f"BEGIN; INSERT INTO t VALUES (1, 'a'), (2, NULL); {FILL}",
    f"SAVEPOINT s1; INSERT INTO t VALUES (3, 'c'); SAVEPOINT s2; UPDATE t SET id = 4 WHERE id = 3; RELEASE s2; {FILL}",
    f"INSERT INTO typed VALUES (1, 'happy'); {FILL}",
    "ROLLBACK TO s1",
    f"INSERT INTO t VALUES (5, 'e'); {FILL}",
    f"ALTER TABLE t ADD note text; INSERT INTO t VALUES (6, 'f', 'n'); {FILL}",
    f"SAVEPOINT s3; ALTER TABLE t DROP note; INSERT INTO t VALUES (7, 'g'); {FILL}",
    "ROLLBACK TO s3",
    f"INSERT INTO t VALUES (8, 'h', NULL); TRUNCATE emptied; DELETE FROM t WHERE id = 1; {FILL}",
    "COMMIT",
    f"BEGIN; INSERT INTO emptied VALUES (1); {FILL}",
    "ROLLBACK",
    f"BEGIN; SAVEPOINT s; SELECT pg_logical_emit_message(true, 'in', 'a subtransaction'); {FILL}",
    "SELECT pg_logical_emit_message(false, 'aside', '')",
    "COMMIT",
    "SELECT pg_replication_origin_create('elsewhere'), pg_replication_origin_session_setup('elsewhere')",
    f"BEGIN; INSERT INTO emptied VALUES (2); {FILL}",
    "COMMIT",
    "SELECT pg_replication_origin_session_reset()",
    "SELECT pg_replication_origin_drop('elsewhere')",
)


def blocks(dsn: str) -> list[bytes]:
    """Run the scenario in an empty database and return the messages that came."""
    with psycopg.connect(dsn, autocommit=True) as connection, psycopg.connect(dsn, autocommit=True) as other:
        connection.execute(_SCHEMA)
        slot = new_slot(connection)
        # What is rolled back later has to be sent before: so the stream is read all along.
        with Reader(dsn, slot, ["shown"], protocol=2, streaming=True) as reader:
            for number, step in enumerate(_STEPS, 1):
                connection.execute(step)
                other.execute("INSERT INTO other DEFAULT VALUES")
                reader.wait_for_commits(number)
        connection.execute("SELECT pg_drop_replication_slot(%s)", [slot])
        return [data for _, data in reader.messages]


def main(dsn: str) -> None:
    """Write the file of the server's version."""
    decoder = StreamDecoder()
    lines = []
    for data in blocks(dsn):
        xid, message = decoder.decode(data)
        lines.append(json.dumps({"data": data.hex(), "xid": xid, "message": repr(message)}))
    with psycopg.connect(dsn) as connection:
        target = STREAMED / f"pg{connection.info.server_version // 10000}.jsonl"
    STREAMED.mkdir(exist_ok=True)
    target.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
