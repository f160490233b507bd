"""The server's head-room and a role's rights, on real servers of every version."""

from __future__ import annotations

import re

import pytest

from pgrepl.catalog import provider, replica_identity, roles, server
from tests.command import eventually
from tests.conftest import NewServer
from tests.servers.database import Database


def test_the_server_says_what_it_is(database: Database) -> None:
    with database.connect() as conn:
        found = server.read(conn)
        version, identifier = conn.execute(
            "SELECT current_setting('server_version_num')::int, system_identifier::text FROM pg_control_system()"
        ).fetchone() or (None, None)
    assert found.version_num == version
    assert found.major == database.server.version
    assert re.fullmatch(r"\d+\.\d+", found.version)
    assert found.wal_level == "logical"
    assert found.decodes
    assert found.effective_wal_level is None
    assert found.database == database.name
    assert found.user == "postgres"
    assert found.encoding == "UTF8"
    assert found.system_identifier == identifier
    assert found.timeline == 1
    assert not found.in_recovery
    assert found.wal_position is not None
    assert found.wal_sender_timeout_ms == 60_000
    assert found.max_slot_wal_keep_size_mb == -1


def test_what_is_taken_is_counted_for_a_role_that_may_see_nothing(database: Database) -> None:
    with database.connect() as admin:
        admin.execute("CREATE ROLE nobody_special LOGIN")
        before = server.read(admin)
        admin.execute("SELECT pg_create_physical_replication_slot('taken_' || left(md5(current_database()), 8))")
        try:
            with (
                database.connect("nobody_special") as conn,
                database.connect(replication="database"),
            ):
                seen = server.read(conn)
        finally:
            admin.execute("SELECT pg_drop_replication_slot('taken_' || left(md5(current_database()), 8))")
    assert seen.used_slots == before.used_slots + 1
    assert seen.used_wal_senders >= before.used_wal_senders + 1
    assert seen.user == "nobody_special"
    assert seen.system_identifier == before.system_identifier


def test_a_change_that_waits_for_a_restart_is_named(new_server: NewServer) -> None:
    private = new_server(18)
    with private.connect() as conn:
        conn.execute("ALTER SYSTEM SET max_files_per_process = 777")
        assert "max_files_per_process" not in server.read(conn).pending_restart
        conn.execute("SELECT pg_reload_conf()")
        eventually(lambda: "max_files_per_process" in server.read(conn).pending_restart)


def test_only_the_attribute_or_superuser_or_a_services_role_lets_replicate(database18: Database) -> None:
    with database18.connect() as conn:
        conn.execute("CREATE ROLE plain LOGIN; CREATE ROLE replicator REPLICATION; CREATE ROLE rds_replication")
        conn.execute("CREATE ROLE member LOGIN; CREATE ROLE between; GRANT rds_replication TO between")
        conn.execute("GRANT between TO member")
        found = {name: roles.can_replicate(conn, name) for name in ("plain", "replicator", "member", "postgres")}
        assert roles.can_replicate(conn, "Plain") is None
        own = roles.can_replicate(conn)
    assert {name: role and role.can_replicate for name, role in found.items()} == {
        "plain": False,
        "replicator": True,
        "member": True,
        "postgres": True,
    }
    assert found["member"] is not None
    assert found["member"].through == ("rds_replication",)
    assert own == found["postgres"]


def test_what_a_role_may_read_is_known_column_by_column(database18: Database) -> None:
    with database18.connect() as conn:
        conn.execute('CREATE ROLE reader LOGIN; CREATE SCHEMA "Closed"')
        conn.execute(
            'CREATE TABLE "Closed".a (x int); CREATE TABLE public.b (x int, y int); CREATE TABLE public.c (x int)'
        )
        conn.execute("GRANT SELECT (x) ON public.b TO reader; GRANT SELECT ON public.c TO reader")
        named = conn.execute("SELECT relname, oid FROM pg_class WHERE relname IN ('a', 'b', 'c')").fetchall()
        oids: dict[str, int] = dict(named)
        role = roles.can_replicate(conn, "reader")
        assert role is not None
        found = roles.table_privileges(conn, role.oid, [*oids.values(), 4_000_000_000])
    assert {name: (found[oid].schema_usage, found[oid].unreadable_columns) for name, oid in oids.items()} == {
        "a": (False, ("x",)),
        "b": (True, ("y",)),
        "c": (True, ()),
    }
    assert len(found) == 3


@pytest.mark.parametrize(
    ("change", "usable"),
    [
        ("ALTER TABLE t ADD PRIMARY KEY (a)", True),
        ("ALTER TABLE t REPLICA IDENTITY FULL", True),
        ("CREATE UNIQUE INDEX u ON t (b); ALTER TABLE t REPLICA IDENTITY USING INDEX u", True),
        ("CREATE UNIQUE INDEX u ON t (b); ALTER TABLE t REPLICA IDENTITY USING INDEX u; DROP INDEX u", False),
        ("ALTER TABLE t ADD PRIMARY KEY (a); ALTER TABLE t REPLICA IDENTITY NOTHING", False),
        ("SELECT", False),
    ],
)
def test_the_identity_that_counts_is_the_one_the_server_uses(database18: Database, change: str, usable: bool) -> None:
    with database18.connect() as conn:
        conn.execute("CREATE TABLE t (a int, b int NOT NULL, c int)")
        conn.execute(change.encode())
        conn.execute("CREATE PUBLICATION p FOR TABLE t; INSERT INTO t VALUES (1, 1, 1)")
        oid = (conn.execute("SELECT 't'::regclass::oid").fetchone() or [0])[0]
        (found,) = replica_identity.read(conn, [oid])
        assert found.usable is usable
        assert _update_works(database18, "UPDATE t SET c = 2") is usable


def test_of_a_partitioned_table_the_leaves_count_whatever_the_publication_says(database: Database) -> None:
    with database.connect() as conn:
        conn.execute("CREATE TABLE root (a int PRIMARY KEY, b int) PARTITION BY RANGE (a)")
        conn.execute("CREATE TABLE middle PARTITION OF root FOR VALUES FROM (0) TO (20) PARTITION BY RANGE (a)")
        conn.execute("CREATE TABLE leaf PARTITION OF middle FOR VALUES FROM (0) TO (10)")
        conn.execute("ALTER TABLE leaf REPLICA IDENTITY NOTHING")
        conn.execute(
            "CREATE PUBLICATION p FOR TABLE root WITH (publish_via_partition_root); INSERT INTO root VALUES (1, 1)"
        )
        oid = (conn.execute("SELECT 'root'::regclass::oid").fetchone() or [0])[0]
        (found,) = replica_identity.read(conn, [oid])
    assert (found.name, found.is_partition, found.root_oid, found.usable) == ("leaf", True, oid, False)
    assert not _update_works(database, "UPDATE root SET b = 2")


def _update_works(database: Database, statement: str) -> bool:
    import psycopg

    with database.connect() as conn:
        try:
            conn.execute(statement.encode())
        except psycopg.errors.ObjectNotInPrerequisiteState:
            return False
    return True


def test_only_an_index_that_the_server_accepts_is_a_candidate(database18: Database) -> None:
    with database18.connect() as conn:
        conn.execute("CREATE TABLE t (a int NOT NULL, b int, c int NOT NULL)")
        conn.execute(
            "CREATE UNIQUE INDEX a1 ON t (b); CREATE UNIQUE INDEX a2 ON t (a) WHERE b > 0; CREATE INDEX a3 ON t (a)"
        )
        conn.execute("CREATE UNIQUE INDEX a4 ON t ((a + 1)); ALTER TABLE t ADD CONSTRAINT a5 UNIQUE (a) DEFERRABLE")
        oid = (conn.execute("SELECT 't'::regclass::oid").fetchone() or [0])[0]
        (before,) = replica_identity.read(conn, [oid])
        # A column that is only INCLUDEd may be null.
        conn.execute("CREATE UNIQUE INDEX z ON t (c) INCLUDE (b)")
        (after,) = replica_identity.read(conn, [oid])
        conn.execute("ALTER TABLE t REPLICA IDENTITY USING INDEX z")
    assert before.candidate_index is None
    assert after.candidate_index == "z"


def test_tables_that_should_not_be_published_are_no_proposal(database18: Database) -> None:
    with database18.connect() as conn:
        conn.execute("CREATE SCHEMA etl; CREATE TABLE etl.state (a int); CREATE UNLOGGED TABLE u (a int)")
        conn.execute("CREATE TABLE root (a int) PARTITION BY LIST (a); CREATE TABLE leaf PARTITION OF root DEFAULT")
        conn.execute('CREATE TEMPORARY TABLE tmp (a int); CREATE TABLE "T" (a int); CREATE VIEW v AS SELECT 1')
        found = [(table.schema, table.name, table.partitioned) for table in replica_identity.user_tables(conn)]
    assert found == [("public", "T", False), ("public", "root", True)]


def test_traces_of_a_managed_service_are_seen(database18: Database) -> None:
    with database18.connect() as conn:
        assert provider.traces(conn) == provider.Traces(frozenset(), frozenset(), False)
        conn.execute("CREATE ROLE rds_superuser; CREATE FUNCTION aurora_version() RETURNS text RETURN '1'")
        assert provider.traces(conn) == provider.Traces(frozenset(), frozenset({"rds_superuser"}), True)
