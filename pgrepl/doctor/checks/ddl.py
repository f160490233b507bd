"""Are changes of tables told to the readers?"""

from __future__ import annotations

from collections.abc import Iterator

from pgrepl.doctor.check import Check
from pgrepl.doctor.context import Context
from pgrepl.doctor.findings import Finding, Fix, Status
from pgrepl.names import quote_ident

_TRIGGER = "supabase_etl_ddl_message_trigger"
_WHEN = {
    "O": "in ordinary sessions",
    "D": "never: it is disabled",
    "R": "in sessions of a replica alone",
    "A": "always",
}

# Sessions with session_replication_role = replica skip triggers that are not enabled ALWAYS.
_ENABLED = """
SELECT t.evtenabled::text,
       ARRAY(SELECT coalesce(r.rolname::text, 'every role')
               FROM pg_catalog.pg_db_role_setting s
               LEFT JOIN pg_catalog.pg_roles r ON r.oid = s.setrole
              WHERE 'session_replication_role=replica' = ANY (s.setconfig) ORDER BY 1)
  FROM pg_catalog.pg_event_trigger t
 WHERE t.evtname = %s
"""


class Trigger(Check):
    """The event trigger that writes changes of tables into the stream fires whenever a table is altered.

    supabase/etl's trigger writes a logical message at ALTER TABLE. It can be disabled, and with the default setting
    sessions with ``session_replication_role = replica``, as restores and other replication tools use it, pass it by.
    Whether it has to be there at all is asked by etl.trigger.

    Risk: a reader that relies on the messages goes on with the old shape of the table.

    Fix: enable it ALWAYS.

    See: https://www.postgresql.org/docs/current/sql-altereventtrigger.html
    """

    id = "ddl.trigger"
    title = "the event trigger for changes of tables fires"

    def run(self, context: Context) -> Iterator[Finding]:
        row = context.conn.execute(_ENABLED, [_TRIGGER]).fetchone()
        if row is None:
            yield self.finding(Status.SKIP, f"there is no {_TRIGGER} in this database")
            return
        enabled, replicas = row
        session = context.session_settings["session_replication_role"].value
        if session == "replica":
            replicas = [*replicas, context.server.user]
        evidence = {"enabled": enabled, "replica_sessions_of": replicas}
        if enabled == "A" or (enabled == "O" and not replicas):
            yield self.finding(Status.PASS, f"it fires {_WHEN[enabled]}", evidence)
            return
        passed_by = f", and sessions of {', '.join(replicas)} pass it by" if enabled == "O" else ""
        yield self.finding(
            Status.WARN,
            f"it fires {_WHEN[enabled]}{passed_by}",
            evidence,
            object=_TRIGGER,
            fix=[Fix("sql", f"ALTER EVENT TRIGGER {quote_ident(_TRIGGER)} ENABLE ALWAYS;")],
        )
