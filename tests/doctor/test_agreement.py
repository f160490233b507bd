"""One broken server as seen by four roles: they find the same, or say that they cannot see it, and never contradict."""

from __future__ import annotations

import pytest

from pgrepl.doctor import Report, Status
from pgrepl.doctor.checks import all_slots, live
from pgrepl.names import apply_slot, pipeline_id, table_sync_slot
from tests.command import eventually
from tests.conftest import NewServer
from tests.doctor.conftest import examine
from tests.doctor.fixes import fresh_name, is_silent, make_slot, write_wal
from tests.doctor.state import pipelines_row, state
from tests.servers.database import Database

# What only the role's own connection can try, and what is about the connected role itself.
_OWN = {"conn.sql", "conn.replication", "conn.same_server", "role.monitor"}
_OPEN = {Status.UNKNOWN, Status.SKIP}


def verdicts(report: Report) -> dict[tuple[str, str | None], Status]:
    """What was found, by check and object."""
    return {(finding.id, finding.object): finding.status for finding in report.findings if finding.id not in _OWN}


@pytest.mark.parametrize("version", [16, 18])
def test_four_roles_do_not_contradict_each_other(
    new_server: NewServer, version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(new_server(version, max_slot_wal_keep_size="64MB"), "postgres")
    database.psql(
        "CREATE ROLE monitor LOGIN; GRANT pg_monitor TO monitor; CREATE ROLE plain LOGIN REPLICATION;"
        "CREATE ROLE onlooker LOGIN; CREATE ROLE cdc LOGIN;"
        "CREATE TABLE k (a int); CREATE TABLE good (a int PRIMARY KEY); ALTER TABLE good ENABLE ROW LEVEL SECURITY;"
        "CREATE PUBLICATION p FOR TABLE k, good"
    )
    lost, behind = fresh_name(), fresh_name()
    pipeline = pipeline_id("localhost", "postgres")
    make_slot(database, lost)
    write_wal(database, 8)
    database.psql("CHECKPOINT")
    make_slot(database, behind)
    write_wal(database, 4)
    oid = state(database, "t", "errored", pipeline=pipeline, reason="no key")
    pipelines_row(database, pipeline, apply_slot(pipeline), "0/1000000")
    make_slot(database, apply_slot(pipeline))
    make_slot(database, table_sync_slot(pipeline, oid))
    make_slot(database, apply_slot(pipeline_id("gone", "postgres")))
    monkeypatch.setattr(live, "_LONG_SECONDS", 0.0)
    # How fast WAL grows is another thing at each moment.
    monkeypatch.setattr(all_slots, "_MEASURED", 2.0)
    with database.connect() as session:
        session.execute("BEGIN")
        session.execute("SELECT pg_current_xact_id()")
        session.execute("PREPARE TRANSACTION 'forgotten'")
    idle = database.connect()
    idle.execute("BEGIN")
    idle.execute("SELECT pg_current_xact_id()")
    try:
        eventually(lambda: not is_silent("slot.valid", lost, database))
        seen = {
            user: verdicts(examine(database, "p", user=user, role="cdc", store="postgres"))
            for user in ("postgres", "monitor", "plain", "onlooker")
        }
    finally:
        idle.close()
        database.psql("ROLLBACK PREPARED 'forgotten'")
    everything = seen["postgres"]
    assert not [key for key, status in everything.items() if status is Status.UNKNOWN]
    broken = {check_id for (check_id, _), status in everything.items() if status in (Status.WARN, Status.FAIL)}
    assert broken >= {
        "slot.valid",
        "slot.lag",
        "slot.orphans",
        "slot.state_match",
        "live.long_xact",
        "live.prepared",
        "live.schema",
        "state.errored",
        "state.leftover_slots",
        "tbl.replica_identity",
        "role.rls",
        "role.select",
    }
    for user, found in seen.items():
        open_checks = {check_id for (check_id, _), status in found.items() if status in _OPEN}
        for key, status in found.items():
            if status in _OPEN:
                continue
            assert everything.get(key) == status, (user, key, status, everything.get(key))
        # What the superuser found is found as well, or said to be hidden.
        for (check_id, name), status in everything.items():
            if status in (Status.WARN, Status.FAIL):
                assert (check_id, name) in found or check_id in open_checks, (user, check_id, name)
