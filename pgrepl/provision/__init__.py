"""Setting a server up for logical replication, and the way back: plan first, then apply, all or nothing."""

from pgrepl.provision.apply import DEFAULT_LOCK_TIMEOUT, apply
from pgrepl.provision.checks import check_version
from pgrepl.provision.inventory import is_same_database
from pgrepl.provision.membership import find_publication, plan_add, plan_create, plan_remove
from pgrepl.provision.plan import plan, plan_bookmarks
from pgrepl.provision.script import dry_run_script, needs_script
from pgrepl.provision.steps import Note, Plan, Statement, Step
from pgrepl.provision.teardown import Unwanted, plan_teardown
from pgrepl.provision.wanted import DEFAULT_PUBLICATION, OPERATIONS, Wanted
from pgrepl.stores.tables import DEFAULT_BOOKMARKS

__all__ = [
    "DEFAULT_BOOKMARKS",
    "DEFAULT_LOCK_TIMEOUT",
    "DEFAULT_PUBLICATION",
    "OPERATIONS",
    "Note",
    "Plan",
    "Statement",
    "Step",
    "Unwanted",
    "Wanted",
    "apply",
    "check_version",
    "dry_run_script",
    "find_publication",
    "is_same_database",
    "needs_script",
    "plan",
    "plan_add",
    "plan_bookmarks",
    "plan_create",
    "plan_remove",
    "plan_teardown",
]
