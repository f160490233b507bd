"""Is the server set up for logical replication, with room for one stream more?"""

from __future__ import annotations

from collections.abc import Iterator

from pgrepl.doctor.check import Check
from pgrepl.doctor.context import Context
from pgrepl.doctor.findings import Finding, Fix, Status

_DEFAULT_MAXIMUM = 10
_HEADROOM = 5
_FEW_CONNECTIONS = 5
_RESTART_WANTED = (
    "hot_standby",
    "max_active_replication_origins",
    "max_connections",
    "max_logical_replication_workers",
    "max_prepared_transactions",
    "max_replication_slots",
    "max_wal_senders",
    "max_worker_processes",
    "shared_preload_libraries",
    "track_commit_timestamp",
    "wal_level",
)


class WalLevel(Check):
    """The WAL holds what logical decoding needs: wal_level is logical.

    From PostgreSQL 19 on the server switches by itself when the first logical slot is made and wal_level is replica;
    effective_wal_level shows where it stands.

    Risk: with less no logical slot can be made (SQLSTATE 55000). CREATE PUBLICATION only warns.

    Fix: set it, and restart the server. It will write a little more WAL. Managed services have a switch of their own.

    See: https://www.postgresql.org/docs/current/runtime-config-wal.html#GUC-WAL-LEVEL
    """

    id = "cfg.wal_level"
    title = "wal_level is logical"

    def run(self, context: Context) -> Iterator[Finding]:
        server = context.server
        evidence: dict[str, object] = {"wal_level": server.wal_level}
        if server.effective_wal_level is not None:
            evidence["effective_wal_level"] = server.effective_wal_level
        if server.decodes:
            yield self.finding(Status.PASS, f"wal_level is {server.wal_level}", evidence)
            return
        pending = "wal_level" in server.pending_restart
        yield self.finding(
            Status.FAIL,
            f"wal_level is {server.wal_level}" + (", its new value waits for a restart" if pending else ""),
            {**evidence, "pending_restart": pending},
            fix=[Fix("action", context.provider.restart)] if pending else context.provider.set_wal_level(),
        )


class SlotsFree(Check):
    """A replication slot can be made: max_replication_slots is not used up.

    All slots of the cluster count, physical, inactive and lost ones too. A slot that is to be used and exists already
    needs no place.

    Risk: when none is free, making one fails with SQLSTATE 53400.

    Fix: drop slots that nobody needs, since they also keep WAL; else raise the limit, which needs a restart.

    See: https://www.postgresql.org/docs/current/runtime-config-replication.html#GUC-MAX-REPLICATION-SLOTS
    """

    id = "cfg.slots_free"
    title = "a replication slot is free"

    def run(self, context: Context) -> Iterator[Finding]:
        server = context.server
        all_slots = context.slots
        evidence = {"max_replication_slots": server.max_replication_slots, "used": len(all_slots)}
        free = server.max_replication_slots - len(all_slots)
        if context.slot is not None:
            yield self.finding(Status.PASS, f"slot {context.slot.name} exists already", evidence)
            return
        if free > 1:
            yield self.finding(Status.PASS, f"{free} of {server.max_replication_slots} are free", evidence)
            return
        lost = [slot.name for slot in all_slots if slot.lost]
        raised = max(_DEFAULT_MAXIMUM, len(all_slots) + _HEADROOM)
        yield self.finding(
            Status.WARN if free == 1 else Status.FAIL,
            f"{'only one' if free == 1 else 'none'} of {server.max_replication_slots} is free",
            {**evidence, "lost": lost},
            fix=[
                *(Fix("command", f"pgrepl slots drop {name}") for name in lost),
                Fix("command", "pgrepl slots list --all"),
                *context.change("max_replication_slots", str(raised)),
            ],
        )


class SendersFree(Check):
    """A replication connection more can be served: max_wal_senders is not used up.

    Standbys, backups and every reader of a slot use one each.

    Risk: when none is free, connecting fails with SQLSTATE 53300. With fewer walsenders than slots not all slots can
    be read at a time.

    Fix: raise max_wal_senders, which needs a restart.

    See: https://www.postgresql.org/docs/current/runtime-config-replication.html#GUC-MAX-WAL-SENDERS
    """

    id = "cfg.senders_free"
    title = "a walsender is free"

    def run(self, context: Context) -> Iterator[Finding]:
        server = context.server
        free = server.free_wal_senders
        evidence = {
            "max_wal_senders": server.max_wal_senders,
            "used": server.used_wal_senders,
            "max_replication_slots": server.max_replication_slots,
        }
        raised = max(_DEFAULT_MAXIMUM, server.used_wal_senders + _HEADROOM, server.max_replication_slots)
        fix = context.change("max_wal_senders", str(raised))
        if free <= 1:
            yield self.finding(
                Status.WARN if free == 1 else Status.FAIL,
                f"{'only one' if free == 1 else 'none'} of {server.max_wal_senders} is free",
                evidence,
                fix=fix,
            )
        elif server.max_wal_senders < server.max_replication_slots:
            yield self.finding(
                Status.WARN,
                f"max_wal_senders is {server.max_wal_senders}, fewer than max_replication_slots with"
                f" {server.max_replication_slots}: not all slots can be read at a time",
                evidence,
                fix=fix,
            )
        else:
            yield self.finding(Status.PASS, f"{free} of {server.max_wal_senders} are free", evidence)


class PendingRestart(Check):
    """No setting that replication depends on waits for a restart.

    ALTER SYSTEM and the configuration files take effect for some settings only when the server starts again;
    pg_settings.pending_restart shows which wait.

    Risk: the server works with the old values, whatever the files say, until some restart changes them, perhaps at an
    hour when nobody expects it.

    Fix: restart the server.

    See: https://www.postgresql.org/docs/current/view-pg-settings.html
    """

    id = "cfg.pending_restart"
    title = "no setting of replication waits for a restart"

    def run(self, context: Context) -> Iterator[Finding]:
        waiting = sorted(context.server.pending_restart & set(_RESTART_WANTED))
        if waiting:
            yield self.finding(
                Status.WARN,
                f"the new value of {', '.join(waiting)} waits for a restart",
                {"pending_restart": waiting},
                fix=[Fix("action", context.provider.restart)],
            )
        else:
            yield self.finding(Status.PASS, "none waits")


# Of other roles' sessions everybody sees that they are there, whose they are and in which database. Workers lack one or
# the other, and walsenders have places of their own.
_SESSIONS = """
SELECT count(a.usesysid)
  FROM pg_catalog.pg_stat_activity a
 WHERE a.datid IS NOT NULL AND a.pid <> ALL (%s)
   AND NOT EXISTS (SELECT FROM pg_catalog.pg_stat_replication w WHERE w.pid = a.pid)
"""


class Connections(Check):
    """Ordinary connections are free: max_connections is not used up.

    A snapshot takes one connection for each table that is copied at the same time, and a store takes some more. Of
    max_connections those are set aside that superuser_reserved_connections and reserved_connections keep.

    Risk: when none is free, connecting fails with SQLSTATE 53300, for the application, too.

    Fix: close connections that are not needed, put the application behind a pooler, or raise max_connections, which
    needs a restart.

    See: https://www.postgresql.org/docs/current/runtime-config-connection.html#GUC-MAX-CONNECTIONS
    """

    id = "cfg.connections"
    title = "ordinary connections are free"

    def run(self, context: Context) -> Iterator[Finding]:
        found = context.session_settings
        row = context.conn.execute(_SESSIONS, [context.passing_pids]).fetchone()
        assert row is not None
        limit, used = found["max_connections"].number, row[0]
        reserved = sum(
            found[name].number for name in ("superuser_reserved_connections", "reserved_connections") if name in found
        )
        free = limit - reserved - used
        evidence = {"max_connections": limit, "reserved": reserved, "used": used}
        if free >= _FEW_CONNECTIONS:
            yield self.finding(Status.PASS, f"{free} of {limit} are free", evidence)
            return
        yield self.finding(
            Status.FAIL if free < 1 else Status.WARN,
            f"{'none' if free < 1 else f'only {free}'} of {limit} is free",
            evidence,
            fix=[
                Fix("action", "close connections that are not needed"),
                *context.change("max_connections", str(limit + 50)),
            ],
        )


# A subscription's connection string is not for everyone, and with it the row as a whole is not.
_SUBSCRIPTIONS = "SELECT count(s.oid) FROM pg_catalog.pg_subscription s WHERE s.subenabled"


class Workers(Check):
    """A server that subscribes has a worker for each of its subscriptions.

    max_logical_replication_workers holds one for each subscription and one for each table that is being copied; they
    come out of max_worker_processes, from which parallel queries and extensions take theirs, too.

    Risk: a subscription without a worker stands still, and its slot keeps WAL at the other end.

    Fix: raise both, which needs a restart.

    See: https://www.postgresql.org/docs/current/logical-replication-config.html
    """

    id = "cfg.workers"
    title = "each subscription has a worker"

    def run(self, context: Context) -> Iterator[Finding]:
        row = context.conn.execute(_SUBSCRIPTIONS).fetchone()
        subscriptions = row[0] if row else 0
        if not subscriptions:
            yield self.finding(Status.SKIP, "this server subscribes to nothing")
            return
        found = context.session_settings
        workers, processes = found["max_logical_replication_workers"].number, found["max_worker_processes"].number
        evidence = {
            "subscriptions": subscriptions,
            "max_logical_replication_workers": workers,
            "max_worker_processes": processes,
        }
        # One for each subscription, one more to copy tables, one for the launcher.
        if workers <= subscriptions or processes <= workers:
            wanted = max(workers, subscriptions + _HEADROOM)
            fix = [*context.change("max_logical_replication_workers", str(wanted))]
            if processes <= wanted:
                fix += context.change("max_worker_processes", str(wanted + _HEADROOM))
            yield self.finding(
                Status.INFO,
                f"{subscriptions} subscriptions share max_logical_replication_workers = {workers} of"
                f" max_worker_processes = {processes}",
                evidence,
                fix=fix,
            )
        else:
            yield self.finding(Status.PASS, f"{workers} workers for {subscriptions} subscriptions", evidence)


class Origins(Check):
    """A server that subscribes can track the origin of each subscription.

    From 18 on max_active_replication_origins limits them; before, max_replication_slots did. Each subscription takes
    one, and each table that is being copied another.

    Risk: a subscription without one stands still (SQLSTATE 53400).

    Fix: raise it, which needs a restart.

    See: https://www.postgresql.org/docs/current/runtime-config-replication.html
    """

    id = "cfg.origins"
    title = "each subscription has an origin"

    def run(self, context: Context) -> Iterator[Finding]:
        limit = context.session_settings.get("max_active_replication_origins")
        if limit is None:
            yield self.finding(Status.SKIP, "below 18 max_replication_slots is the limit")
            return
        row = context.conn.execute(_SUBSCRIPTIONS).fetchone()
        subscriptions = row[0] if row else 0
        if not subscriptions:
            yield self.finding(Status.SKIP, "this server subscribes to nothing")
            return
        evidence = {"subscriptions": subscriptions, "max_active_replication_origins": limit.number}
        if limit.number <= subscriptions:
            yield self.finding(
                Status.INFO,
                f"{subscriptions} subscriptions share max_active_replication_origins = {limit.number}",
                evidence,
                fix=context.change("max_active_replication_origins", str(subscriptions + _HEADROOM)),
            )
        else:
            yield self.finding(Status.PASS, f"{limit.number} for {subscriptions} subscriptions", evidence)
