"""Managed services: how each is told by recorded traces, and what is advised there.

None of them runs here, so that traces, settings and their refusals are recorded, and the provider is named.
"""

from __future__ import annotations

import pytest

from pgrepl.catalog.provider import Traces
from pgrepl.doctor import Status, providers
from pgrepl.doctor.findings import RELOAD
from tests.doctor.conftest import examine, of, one
from tests.servers.database import Database

NOTHING = Traces(frozenset(), frozenset(), False)


@pytest.mark.parametrize(
    ("role", "name", "fix"),
    [
        ("rds_superuser", "rds", 'GRANT rds_replication TO "cdc";'),
        ("cloudsqlsuperuser", "cloudsql", 'ALTER ROLE "cdc" REPLICATION;'),
        ("alloydbsuperuser", "alloydb", 'ALTER ROLE "cdc" REPLICATION;'),
        ("azure_pg_admin", "azure", 'ALTER ROLE "cdc" REPLICATION;'),
        ("supabase_admin", "supabase", 'ALTER ROLE "cdc" REPLICATION;'),
        ("neon_superuser", "neon", 'ALTER ROLE "cdc" REPLICATION;'),
        ("mdb_replication", "self-hosted", 'GRANT mdb_replication TO "cdc";'),
    ],
)
def test_a_service_is_told_by_its_roles_on_a_real_server(database18: Database, role: str, name: str, fix: str) -> None:
    database18.psql(f"CREATE ROLE {role}; CREATE ROLE cdc LOGIN")
    report = examine(database18, role="cdc")
    assert report.server.provider == name
    assert one(report, "role.replication").fix[0].text == fix


def test_aurora_is_told_by_its_function_on_a_real_server(database18: Database) -> None:
    database18.psql("CREATE FUNCTION aurora_version() RETURNS text LANGUAGE sql AS $$ SELECT '16.4' $$")
    assert examine(database18, only=["conn.sql"]).server.provider == "aurora"


@pytest.mark.parametrize("name", sorted(set(providers.PROVIDERS) - {"self-hosted"}))
def test_no_service_is_told_to_alter_the_system(database18: Database, name: str) -> None:
    provider = providers.PROVIDERS[name]
    for restart in (True, False):
        fix = provider.set("max_replication_slots", "20", restart=restart)
        assert {step.kind for step in fix} == {"action"}
        assert len(fix) == 1 + restart
    assert {step.kind for step in provider.set_wal_level()} == {"action"}
    report = examine(database18, provider=name)
    assert report.server.provider == name
    fixes = [step.text for check in ("cfg.keep_size", "cfg.fsync") for f in of(report, check) for step in f.fix]
    assert not [text for text in fixes if "ALTER SYSTEM" in text or text == RELOAD]


def test_what_each_advises_against_poolers() -> None:
    advice = {name: provider.direct for name, provider in providers.PROVIDERS.items()}
    assert "writer endpoint" in advice["aurora"]
    assert "-pooler" in advice["neon"]
    assert "IPv6" in advice["supabase"]
    assert "6432" in advice["azure"]
    assert "RDS Proxy" in advice["rds"]


def test_a_setting_of_ours_is_reloaded_or_waits_for_a_restart() -> None:
    provider = providers.SELF_HOSTED
    assert [step.text for step in provider.set("fsync", "on", restart=False)] == [
        "ALTER SYSTEM SET fsync = on;",
        RELOAD,
    ]
    assert provider.set("max_wal_senders", "9")[-1].kind == "action"


def test_cloud_sql_publishes_no_whole_schemas(database18: Database) -> None:
    database18.psql(
        "CREATE SCHEMA etl; CREATE TABLE etl.replication_state (id int PRIMARY KEY);"
        "CREATE TABLE a (x int PRIMARY KEY); CREATE PUBLICATION p FOR ALL TABLES; CREATE ROLE maker LOGIN"
    )
    fix = one(examine(database18, "p", provider="cloudsql"), "pub.excludes_state").fix
    assert "TABLES IN SCHEMA" not in fix[0].text
    assert 'FOR TABLE "public"."a"' in fix[0].text
    found = one(examine(database18, "q", user="maker", provider="cloudsql"), "role.pub_create")
    assert found.status is Status.WARN
    assert "list the tables" in found.fix[-1].text


def test_hosts_of_services() -> None:
    for host, name in (
        ("db.abc.supabase.co", "supabase"),
        ("aws-0-eu.pooler.supabase.com", "supabase"),
        ("ep-x.eu-central-1.aws.neon.tech", "neon"),
        ("db1.example.com", "self-hosted"),
    ):
        assert providers.detect(NOTHING, host).name == name
