"""Managed services: which one a server belongs to, and how settings and rights are changed there."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pgrepl.catalog.provider import Traces
from pgrepl.doctor.findings import RELOAD, Fix
from pgrepl.names import quote_ident


@dataclass(frozen=True)
class Provider:
    """Who runs the server.

    ``settings`` says where a setting is changed, None where ALTER SYSTEM does it, and ``fixed`` which settings nobody
    can change. ``wal_level`` is the action that makes wal_level logical, where it is not the change of that setting.
    ``replication_role`` is granted in place of the REPLICATION attribute. ``direct`` is how to reach the server itself
    past a pooler or a balancer. ``lists_tables`` says that no role there may publish all tables or schemas.
    """

    name: str
    settings: str | None = None
    restart: str = "restart the server"
    wal_level: str | None = None
    replication_role: str | None = None
    replication_note: str | None = None
    direct: str = "connect to the server itself, past poolers and load balancers"
    fixed: frozenset[str] = frozenset()
    lists_tables: bool = False

    def set(self, setting: str, value: str, *, restart: bool = True) -> tuple[Fix, ...]:
        """Change a setting, by default one that takes effect when the server starts."""
        if setting in self.fixed:
            return (Fix("action", f"{setting} cannot be changed on {self.name}"),)
        if self.settings is None:
            last = Fix("action", self.restart) if restart else Fix("sql", RELOAD)
            return Fix("sql", f"ALTER SYSTEM SET {setting} = {value};"), last
        then = (Fix("action", self.restart),) if restart else ()
        return Fix("action", f"set {setting} = {value} in {self.settings}"), *then

    def set_wal_level(self) -> tuple[Fix, ...]:
        """Make wal_level logical."""
        if self.wal_level is None:
            return self.set("wal_level", "'logical'" if self.settings is None else "logical")
        return (Fix("action", self.wal_level),)

    def allow_replication(self, role: str) -> tuple[Fix, ...]:
        """Let an existing role replicate."""
        name = quote_ident(role)
        if self.replication_role is not None:
            return (Fix("sql", f"GRANT {self.replication_role} TO {name};"),)
        note = (Fix("action", self.replication_note),) if self.replication_note else ()
        return (Fix("sql", f"ALTER ROLE {name} REPLICATION;"), *note)

    def create_role(self, role: str) -> tuple[Fix, ...]:
        """Make a role that can log in and replicate."""
        create = Fix("sql", f"CREATE ROLE {quote_ident(role)} LOGIN;")
        return (
            create,
            *self.allow_replication(role),
            Fix("action", f"give it a password: \\password {quote_ident(role)}"),
        )


SELF_HOSTED = Provider("self-hosted")

PROVIDERS = {
    provider.name: provider
    for provider in (
        SELF_HOSTED,
        Provider(
            "rds",
            settings="the instance's parameter group",
            restart="reboot the instance",
            wal_level="set rds.logical_replication = 1 in the instance's parameter group, and reboot the instance",
            replication_role="rds_replication",
            direct="connect to the endpoint of the instance, not through RDS Proxy",
        ),
        Provider(
            "aurora",
            settings="the cluster's parameter group",
            restart="reboot the writer",
            wal_level="set rds.logical_replication = 1 in the cluster's parameter group, and reboot the writer",
            replication_role="rds_replication",
            direct="connect to the cluster's writer endpoint: readers decode nothing, and their endpoint is a balancer",
        ),
        Provider(
            "cloudsql",
            settings="the instance's database flags",
            restart="restart the instance",
            wal_level="set the database flag cloudsql.logical_decoding = on, and restart the instance",
            lists_tables=True,
        ),
        Provider(
            "alloydb",
            settings="the instance's database flags",
            restart="restart the instance",
            wal_level="set the database flag alloydb.logical_decoding = on, and restart the instance",
        ),
        Provider(
            "azure",
            settings="the server parameters",
            direct="connect to port 5432, where the server itself listens; 6432 is its PgBouncer",
            fixed=frozenset({"max_slot_wal_keep_size"}),
        ),
        Provider(
            "supabase",
            settings="the project's database settings",
            restart="restart the project",
            replication_note="roles other than postgres are limited there: if this is refused, use the role postgres",
            direct="connect to db.<project>.supabase.co, port 5432 (IPv6 only, unless the project has the IPv4 add-on)",
        ),
        Provider(
            "neon",
            settings="the project's settings",
            restart="restart the compute",
            wal_level="turn logical replication on in the project's settings (it cannot be turned off again)",
            replication_note="if this is refused: roles made in the console or by the API have REPLICATION",
            direct="connect to the host without -pooler in its name",
        ),
    )
}

# What only its role gives away; its owner is nobody that --provider could name.
_GRANTS_MDB_REPLICATION = replace(
    SELF_HOSTED,
    settings="the cluster's settings in the console",
    restart="the service restarts it",
    replication_role="mdb_replication",
)


def detect(traces: Traces, host: str) -> Provider:
    """Tell whose server it is by what it holds, and where that says nothing by the host's name."""
    if traces.aurora:
        name = "aurora"
    elif "rds" in traces.prefixes or "rds_superuser" in traces.roles:
        name = "rds"
    elif "alloydb" in traces.prefixes or "alloydbsuperuser" in traces.roles:
        name = "alloydb"
    elif "cloudsql" in traces.prefixes or "cloudsqlsuperuser" in traces.roles:
        name = "cloudsql"
    elif "azure" in traces.prefixes or "azure_pg_admin" in traces.roles:
        name = "azure"
    elif "neon" in traces.prefixes or "neon_superuser" in traces.roles or host.endswith(".neon.tech"):
        name = "neon"
    elif "supabase_admin" in traces.roles or host.endswith((".supabase.co", ".supabase.com")):
        name = "supabase"
    elif "mdb_replication" in traces.roles:
        return _GRANTS_MDB_REPLICATION
    else:
        name = "self-hosted"
    return PROVIDERS[name]
