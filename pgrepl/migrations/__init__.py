"""The three migrations of supabase/etl's state store, with SQL of pgrepl's own.

``status``, ``apply``, ``seed`` and ``verify`` take an open connection in autocommit mode; ``sql`` needs none. Whoever
wants the migrations as a part of a transaction of its own takes the steps of ``plan``: the statements, the event
trigger, which can be tried in a savepoint, and the record that goes with both; ``lock_key`` is the advisory lock that
keeps others out meanwhile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgrepl.catalog import etl_schema
from pgrepl.catalog.etl_schema import MigrationStatus
from pgrepl.migrations.apply import Outcome, apply, dry_run_script
from pgrepl.migrations.lock import lock_key
from pgrepl.migrations.plan import Plan, Step, plan
from pgrepl.migrations.scripts import describe_functions, event_trigger, sql, statements
from pgrepl.migrations.seed import PINNED, SeedPlan, accept, plan_seed, seed
from pgrepl.migrations.verify import Mismatch, Verification, verify

if TYPE_CHECKING:
    import psycopg

__all__ = [
    "PINNED",
    "MigrationStatus",
    "Mismatch",
    "Outcome",
    "Plan",
    "SeedPlan",
    "Step",
    "Verification",
    "accept",
    "apply",
    "describe_functions",
    "dry_run_script",
    "event_trigger",
    "lock_key",
    "plan",
    "plan_seed",
    "seed",
    "sql",
    "statements",
    "status",
    "verify",
]


def status(conn: psycopg.Connection) -> list[MigrationStatus]:
    """Say how each known and each recorded version stands. Raises OperationError when the tracker cannot be read."""
    return etl_schema.read(conn).statuses()
