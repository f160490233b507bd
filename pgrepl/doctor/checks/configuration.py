"""Does the configuration name each pipeline once?"""

from __future__ import annotations

from collections.abc import Iterator

from pgrepl.doctor.check import Check
from pgrepl.doctor.context import ConfiguredDatabase, Context
from pgrepl.doctor.findings import Finding, Fix, Status
from pgrepl.names import apply_slot, pipeline_id


class Identity(Check):
    """No two databases of the configuration have the same pipeline id.

    The id is made of ``host/dbname`` as it is written. Port, user and publication are no part of it, so that two
    servers on one host whose databases have one name are one pipeline.

    Risk: both use slots of the same names and the same rows of state: what one has confirmed the other never gets.

    Fix: leave one entry; or name one of the hosts another way (``db1`` and ``db1.example.com`` are two).

    See: https://github.com/supabase/etl
    """

    id = "cfg.identity"
    title = "each configured database is a pipeline of its own"
    needs = ()

    def run(self, context: Context) -> Iterator[Finding]:
        if not context.wanted.databases:
            yield self.finding(Status.SKIP, "the configuration has no [[databases]]")
            return
        same: dict[str, list[ConfiguredDatabase]] = {}
        for database in context.wanted.databases:
            same.setdefault(database.identity, []).append(database)
        doubled = {identity: entries for identity, entries in same.items() if len(entries) > 1}
        for identity, entries in doubled.items():
            slot = apply_slot(pipeline_id(*identity.rsplit("/", 1)))
            names = [entry.name for entry in entries]
            yield self.finding(
                Status.FAIL,
                f"{', '.join(names)} are one pipeline: all of them are {identity}",
                {"entries": names, "ports": [entry.port for entry in entries], "slot": slot},
                object=identity,
                fix=[Fix("action", "leave one of the entries, or write the host of one another way")],
            )
        if not doubled:
            count = len(same)
            yield self.finding(Status.PASS, f"{count} database{'s'[: count != 1]}, each its own")
