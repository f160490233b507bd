"""TLS: the stream and every other connection of a run are encrypted, and the server proves who it is."""

from __future__ import annotations

from tests.config.test_tls import OTHER, OURS, tls_server
from tests.servers.server import Server
from tests.tail.running import Tail, run_tail

__all__ = ["tls_server"]


def test_all_connections_are_encrypted(tls_server: Server) -> None:
    with tls_server.connect() as connection:
        connection.execute("CREATE TABLE t (id int PRIMARY KEY, a text); CREATE PUBLICATION pub FOR TABLE t")
        connection.execute("INSERT INTO t VALUES (1, 'a')")
        dsn = (
            f"host=localhost port={tls_server.port} user=postgres dbname=postgres"
            f" sslmode=verify-full sslrootcert={OURS}"
        )
        with Tail("pub", dsn=dsn, env={"PGPASSWORD": tls_server.password}) as tail:
            tail.until_op("snapshot_end")
            # More than one TLS record at a time, over more than one read.
            connection.execute("INSERT INTO t SELECT i, repeat('x', 1000) FROM generate_series(2, 30000) i")
            tail.until(lambda event: event["op"] == "insert" and event["key"] == {"id": 30000})
            encrypted = connection.execute(
                "SELECT a.application_name, s.ssl FROM pg_stat_ssl s JOIN pg_stat_activity a USING (pid)"
                " WHERE a.application_name LIKE 'pgrepl%'"
            ).fetchall()
            finished = tail.stop()
    assert finished.code == 143
    assert {name.split()[1] for name, _ in encrypted} == {"tail"}
    assert any("pgrepl_tmp_" in name for name, _ in encrypted)
    assert all(ssl for _, ssl in encrypted)
    ids = [event["new"]["id"] for event in finished.events if event["op"] in ("read", "insert")]
    assert ids == list(range(1, 30001))


def test_a_server_that_is_another_is_refused(tls_server: Server) -> None:
    dsn = f"host=localhost port={tls_server.port} user=postgres sslmode=verify-full sslrootcert={OTHER}"
    finished = run_tail("pub", dsn=dsn, env={"PGPASSWORD": tls_server.password})
    assert finished.code == 3
    assert "certificate" in finished.stderr
