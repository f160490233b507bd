"""Is schema ``etl`` as supabase/etl and its relatives want it, and what does their state say?"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence

from pgrepl.catalog import etl_privileges, pipelines
from pgrepl.catalog.etl_manifest import MIGRATIONS
from pgrepl.catalog.etl_schema import Difference, EtlSchema
from pgrepl.catalog.pipelines import TableState
from pgrepl.catalog.slots import Slot
from pgrepl.doctor.check import Check
from pgrepl.doctor.checks.slot import drop, reset
from pgrepl.doctor.context import Context
from pgrepl.doctor.findings import Finding, Fix, Status
from pgrepl.errors import OperationError
from pgrepl.names import parse_slot, quote_ident
from pgrepl.units import size_text

_SEED = Fix("command", "pgrepl migrations seed")
_APPLY = Fix("command", "pgrepl migrations apply")
_TRACKER = "etl._sqlx_migrations"
_TRIGGER = "supabase_etl_ddl_message_trigger"
_TRIGGER_OBJECT = f"event trigger {_TRIGGER}"
_TRIGGER_FUNCTION = "function etl.emit_schema_change_messages()"
_CREATE_TRIGGER = (
    f"CREATE EVENT TRIGGER {_TRIGGER} ON ddl_command_end WHEN TAG IN ('ALTER TABLE')"
    " EXECUTE FUNCTION etl.emit_schema_change_messages();"
)
_FORGET = "DELETE FROM etl._sqlx_migrations WHERE version ="
_RECORD = "UPDATE etl._sqlx_migrations SET checksum = decode('{}', 'hex') WHERE version = {};"
_DONE = ("sync_done", "ready")


class EtlCheck(Check):
    """A check of schema ``etl``; only with the postgres store is it needed."""

    needs = ("conn.sql", "server.version")

    def run(self, context: Context) -> Iterator[Finding]:
        if context.wanted.store != "postgres":
            yield self.finding(Status.SKIP, "only the postgres store keeps its state in schema etl")
            return
        try:
            etl = context.etl
        except OperationError as error:
            # What is recorded shows to those alone who may read the tracker.
            yield self.finding(
                Status.UNKNOWN, str(error), {"sqlstate": error.sqlstate}, fix=context.let_read([_TRACKER])
            )
            return
        yield from self.judge(context, etl)

    @abstractmethod
    def judge(self, context: Context, etl: EtlSchema) -> Iterator[Finding]:
        """Look at the schema."""


class Schema(EtlCheck):
    """Schema etl has all its objects, and the role may use them.

    The postgres store keeps the state of the tables there, in what three migrations make. supabase/etl runs those
    that its tracker does not have, at each start, and creates the schema and the tracker if they do not exist, for
    which PostgreSQL asks for CREATE on both, even when they do.

    Risk: the start fails, with "permission denied" or in the middle of a migration.

    Fix: ``pgrepl migrations apply`` makes what is missing; ``setup`` grants what is needed.

    See: https://github.com/supabase/etl
    """

    id = "live.schema"
    title = "schema etl is complete, and usable by the role"

    def judge(self, context: Context, etl: EtlSchema) -> Iterator[Finding]:
        evidence = {
            "owner": etl.owner,
            "level": etl.level or None,
            "recorded": None if etl.recorded is None else [row.version for row in etl.recorded],
        }
        good = True
        if etl.owner is None:
            good = False
            yield self.finding(Status.FAIL, "there is no schema etl", evidence, object="etl", fix=[_APPLY])
        else:
            missing = [status for status in etl.statuses() if status.state == "missing" and not status.failed]
            for status in missing:
                good = False
                there = bool(status.objects_there)
                yield self.finding(
                    Status.FAIL,
                    f"migration {status.version} ({status.description}) is "
                    + ("not recorded, though what it makes is there" if there else "missing"),
                    evidence,
                    object=str(status.version),
                    # One call does it for all of them.
                    fix=[_SEED if there else _APPLY],
                )
        role = context.role
        lacking = etl_privileges.missing(context.conn, role.oid) if role is not None and etl.owner is not None else []
        for privileges, on_what in lacking:
            good = False
            name = quote_ident(context.role_name)
            yield self.finding(
                Status.FAIL,
                f"{context.role_name} has no {privileges} on {on_what}",
                {"missing": privileges},
                object=on_what,
                fix=[Fix("sql", f"GRANT {privileges} ON {on_what} TO {name};")],
            )
        if good:
            yield self.finding(Status.PASS, f"all {len(MIGRATIONS)} migrations are there", evidence)


class Trigger(EtlCheck):
    """The event trigger that writes a message for each ALTER TABLE is there.

    supabase/etl learns from these messages how a table's columns change. Making an event trigger takes a superuser,
    or on some clouds their administrator's role. Whether it is enabled is another check, ddl.trigger.

    Risk: after an ALTER TABLE the next row does not fit the columns that supabase/etl knows, and it stops there, at
    every start again.

    Fix: have it made by a superuser.

    See: https://www.postgresql.org/docs/current/sql-createeventtrigger.html
    """

    id = "etl.trigger"
    title = "the event trigger is there"

    def judge(self, context: Context, etl: EtlSchema) -> Iterator[Finding]:
        if etl.owner is None:
            yield self.finding(Status.SKIP, "there is no schema etl")
            return
        objects = etl.objects
        found = objects.get(_TRIGGER_OBJECT)
        evidence = {"definition": found}
        if found is not None:
            yield self.finding(Status.PASS, f"{_TRIGGER} is there", evidence)
            return
        fix = [_APPLY]
        if _TRIGGER_FUNCTION in objects:
            fix = [Fix("sql", _CREATE_TRIGGER), Fix("action", "that takes a superuser")]
        yield self.finding(Status.FAIL, f"there is no {_TRIGGER}: ALTER TABLE goes unnoticed", evidence, fix=fix)


class Checksums(EtlCheck):
    """What the tracker records fits the published migrations, and what is in the schema.

    supabase/etl compares the checksum of each migration with the one that is recorded (SHA-384 of the file) and
    refuses to start when one differs, or when one is recorded as failed. Line ends that git changed make another
    checksum.

    Risk: it does not start: "was previously applied but has been modified", "is partially applied".

    Fix: where the objects are those of the published migration, record its checksum. Else find out who changed what.

    See: https://github.com/supabase/etl
    """

    id = "etl.checksums"
    title = "the recorded migrations are the published ones"

    def judge(self, context: Context, etl: EtlSchema) -> Iterator[Finding]:
        if etl.recorded is None:
            yield self.finding(Status.SKIP, f"there is no {_TRACKER}")
            return
        damage = etl.differences()
        good = True
        for status in etl.statuses():
            lacking = [found for found in damage if found.version == status.version]
            evidence = {
                "state": "failed" if status.failed else status.state,
                "expected_checksum": status.expected_checksum,
                "recorded_checksum": status.recorded_checksum,
                "objects": [str(found) for found in lacking],
            }
            if status.failed:
                text = f"migration {status.version} is recorded as failed"
                fix = [
                    Fix(
                        "action",
                        f"look at what it left, then take the record away: {_FORGET} {status.version};",
                    )
                ]
            elif status.state == "checksum-mismatch" and not lacking:
                text = f"migration {status.version} is recorded with another checksum, though what it makes is right"
                fix = [
                    Fix("sql", _RECORD.format(status.expected_checksum, status.version)),
                ]
            elif status.state == "checksum-mismatch":
                text = f"migration {status.version} is recorded with another checksum, and {_some(lacking)}"
                fix = [Fix("command", "pgrepl migrations verify")]
            elif status.state == "objects-missing":
                text = f"migration {status.version} is recorded, but {_some(lacking)}"
                fix = [
                    Fix("command", f"pgrepl migrations sql {status.version}"),
                    Fix("action", "make from that what is missing"),
                ]
            else:
                continue
            if {found.object for found in lacking} == {_TRIGGER_OBJECT}:
                # etl.trigger or ddl.trigger says the same, with a better fix.
                continue
            good = False
            yield self.finding(Status.FAIL, text, evidence, object=str(status.version), fix=fix)
        if good:
            recorded = [row.version for row in etl.recorded]
            yield self.finding(Status.PASS, "what is recorded fits", {"recorded": recorded})


class UnknownVersion(EtlCheck):
    """No migration is recorded that pgrepl and the supabase/etl of its revision do not know.

    A newer supabase/etl adds migrations of its own. One that does not know them refuses to start, whatever they made.

    Risk: "was previously applied but is missing in the resolved migrations".

    Fix: go on with the newer one.

    See: https://github.com/supabase/etl
    """

    id = "etl.unknown_version"
    title = "no unknown migration is recorded"

    def judge(self, context: Context, etl: EtlSchema) -> Iterator[Finding]:
        if etl.recorded is None:
            yield self.finding(Status.SKIP, f"there is no {_TRACKER}")
            return
        unknown = [status for status in etl.statuses() if status.state == "unknown"]
        for status in unknown:
            yield self.finding(
                Status.FAIL,
                f"migration {status.version} ({status.description}) is of another supabase/etl",
                {"version": status.version, "description": status.description},
                object=str(status.version),
                fix=[
                    Fix(
                        "action",
                        "go on with the supabase/etl that made it; if it is gone for good together with what the"
                        f" migration made: {_FORGET} {status.version};",
                    )
                ],
            )
        if not unknown:
            yield self.finding(Status.PASS, "all that are recorded are known")


class Errored(Check):
    """No table of a pipeline has stopped with an error.

    A table whose copy failed, or whose rows could not be handled, is set aside as errored, with the reason; the
    others go on. A restart does not try it again.

    Risk: its changes go nowhere, and a slot that was left for its copy keeps WAL.

    Fix: mend the cause, then let the table be copied again.

    See: https://github.com/supabase/etl
    """

    id = "state.errored"
    title = "no table has stopped with an error"
    needs = ("conn.sql", "server.version")

    def run(self, context: Context) -> Iterator[Finding]:
        states = context.states
        errored = [table for table in states.tables if table.state == "errored"]
        for table in errored:
            reason = table.details.get("reason")
            solution = table.details.get("solution")
            yield self.finding(
                Status.FAIL if _is_ours(context, table) else Status.WARN,
                f"{table.label} stopped: {' '.join(str(reason or 'no reason is stored').split())}",
                {
                    "source": table.source,
                    "pipeline_id": table.pipeline_id,
                    "oid": table.oid,
                    "retry_policy": table.details.get("retry_policy"),
                },
                object=table.label,
                fix=[
                    Fix("action", f"mend the cause{': ' + str(solution) if solution else ''}"),
                    reset(context, table),
                ],
            )
        yield from _rest(self, context, errored, "no table has")


class LeftoverSlots(Check):
    """No slot is left from the copy of a table.

    supabase/etl copies each table through a slot of its own, and drops it when the table has caught up. After a
    crash, or when the copy failed, the slot stays: it is used again only while the table is still being copied.

    Risk: it keeps WAL for ever.

    Fix: drop it. A table that is errored needs its state reset as well.

    See: https://github.com/supabase/etl
    """

    id = "state.leftover_slots"
    title = "no slot is left from a copy"
    needs = ("conn.sql", "server.version")

    def run(self, context: Context) -> Iterator[Finding]:
        here = [slot for slot in context.slots if slot.database == context.server.database]
        if all(slot.kind != "table-sync" for slot in here):
            yield self.finding(Status.PASS, "there is none for the copy of a table")
            return
        states = context.states
        tables = {(table.pipeline_id, table.oid): table for table in states.tables if table.source == pipelines.STATE}
        left: list[Slot] = []
        for slot in here:
            name = parse_slot(slot.name)
            if name.kind != "table-sync" or slot.active or name.pipeline_id is None:
                continue
            table = tables.get((name.pipeline_id, name.table_oid or 0))
            # Of a pipeline without any state slot.orphans says it.
            if not states.knows(name.pipeline_id):
                continue
            left.append(slot)
            yield self._left(slot, table)
        yield from _rest(self, context, left, "none is")

    def _left(self, slot: Slot, table: TableState | None) -> Finding:
        kept = size_text(slot.retained_bytes or 0)
        evidence = {"state": table and table.state, "retained_bytes": slot.retained_bytes}
        if table is None:
            text = "copied a table that is in the pipeline no more"
        elif table.state in (*_DONE, "errored"):
            text = f"copied {table.label}, which is {table.state}"
        else:
            return self.finding(
                Status.INFO,
                f"{slot.name} copies {table.label}, which is {table.state}; nobody does so at this moment",
                evidence,
                object=slot.name,
                fix=[Fix("action", "start the pipeline again: it drops the slot and begins anew")],
            )
        return self.finding(
            Status.WARN,
            f"{slot.name} {text}, and keeps {kept} of WAL",
            evidence,
            object=slot.name,
            fix=[drop(slot)],
        )


def _rest(check: Check, context: Context, found: list[TableState] | list[Slot], text: str) -> Iterator[Finding]:
    """Say that all is well, or that it could not be seen."""
    states = context.states
    unreadable = [name for name in states.unreadable if name in (pipelines.STATE, pipelines.BOOKMARKS)]
    if unreadable:
        yield check.finding(
            Status.UNKNOWN,
            f"{' and '.join(unreadable)} cannot be read by {context.server.user}",
            fix=context.let_read(unreadable),
        )
    elif not found:
        yield check.finding(Status.PASS, text, {"state_tables": list(states.read), "tables": len(states.tables)})


def _is_ours(context: Context, table: TableState) -> bool:
    if table.slot is not None:
        return context.keeps_slot and table.slot == context.slot_name
    return table.pipeline_id == context.pipeline_id


def _some(lacking: Sequence[Difference]) -> str:
    first = "; ".join(map(str, lacking[:3]))
    return first if len(lacking) <= 3 else f"{first}; and {len(lacking) - 3} more"
