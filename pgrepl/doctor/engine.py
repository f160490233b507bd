"""Run the checks: each one alone, those without their grounds skipped, and none able to end the run."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import psycopg

from pgrepl.connection import connect
from pgrepl.doctor.check import Check, Explanation
from pgrepl.doctor.checks import CHECKS
from pgrepl.doctor.context import ConfiguredDatabase, Context, Wanted
from pgrepl.doctor.findings import Finding, Status
from pgrepl.doctor.providers import PROVIDERS
from pgrepl.doctor.report import Report, ServerIdentity
from pgrepl.errors import ConnectError, InputError, PgreplError

if TYPE_CHECKING:
    from pgrepl.conninfo import ConnectionTarget

_CONNECTED = "conn.sql"
_PRIVILEGE = "42501"
_BLOCKING = frozenset({Status.FAIL, Status.UNKNOWN, Status.SKIP})


def run(
    target: ConnectionTarget,
    *,
    publications: Sequence[str] = (),
    role: str | None = None,
    store: str = "memory",
    slot: str | None = None,
    provider: str = "auto",
    only: Collection[str] = (),
    skip: Collection[str] = (),
    probe: bool = False,
    upgrade: bool = False,
    databases: Sequence[ConfiguredDatabase] = (),
) -> Report:
    """Connect, run the checks and report; nothing on the server is changed.

    Without ``publications`` every one of the database is looked at; ``role`` is who is to replicate, by default the
    connected role; ``slot`` is one that is to be used when it exists. ``only`` and ``skip`` choose checks by id;
    what a chosen one needs runs too, and shows when it does not pass. ``probe`` makes a temporary slot and sends a
    message through it; ``upgrade`` asks what pg_upgrade would do to the slots. ``databases`` are the entries of the
    configuration, which are compared with each other. That no connection can be made is a finding, not an error.
    Raises InputError for an unknown id or provider.
    """
    for check_id in (*only, *skip):
        _known(check_id, check_ids(), "check")
    _known(provider, ["auto", *PROVIDERS], "provider")
    chosen = {check.id for check in CHECKS if (not only or check.id in only) and check.id not in skip}
    wanted = Wanted(tuple(publications), role, store, slot, provider, probe, upgrade, tuple(databases))
    try:
        connection = connect(target, "pgrepl doctor")
    except ConnectError as error:
        return _report(Context(target, wanted, None, error), chosen, skip)
    with connection:
        return _report(Context(target, wanted, connection), chosen, skip)


def check_ids() -> list[str]:
    """List the ids of all checks, in their order."""
    return [check.id for check in CHECKS]


def explain(check_id: str) -> Explanation:
    """Give the documentation of a check. Raises InputError for an unknown id."""
    _known(check_id, check_ids(), "check")
    return next(check.explanation() for check in CHECKS if check.id == check_id)


def _known(name: str, names: Sequence[str], kind: str) -> None:
    if name not in names:
        near = difflib.get_close_matches(name, names, 1)
        raise InputError(
            f"there is no {kind} {name!r}",
            hint=f"did you mean {near[0]}?" if near else f"there are: {', '.join(names)}",
        )


def _report(context: Context, chosen: Collection[str], skip: Collection[str]) -> Report:
    findings = _run_checks(context, chosen, skip)
    wanted = context.wanted
    server, names, role, slot = ServerIdentity(), wanted.publications, wanted.role, wanted.slot
    # Without a connection, or when it broke, there is only what was asked for.
    if context.connection is not None:
        with suppress(psycopg.Error, PgreplError):
            server = _identify(context)
            role = context.role_name
            names = names or tuple(publication.name for publication in context.publications)
            slot = context.slot_name if context.keeps_slot else None
    return Report(server, names, role, wanted.store, slot, findings, context.error)


def _identify(context: Context) -> ServerIdentity:
    server = context.server
    return ServerIdentity(
        version=server.version,
        version_num=server.version_num,
        provider=context.provider.name,
        database=server.database,
        system_identifier=server.system_identifier,
        in_recovery=server.in_recovery,
    )


def _run_checks(context: Context, chosen: Collection[str], skip: Collection[str]) -> list[Finding]:
    needed = {need for check in CHECKS if check.id in chosen for need in check.needs} - set(skip)
    running = [check for check in CHECKS if check.id in chosen or check.id in needed]
    blocked: set[str] = set()
    findings: dict[str, list[Finding]] = {}
    for check in sorted(running, key=lambda check: check.samples):
        missing = [need for need in check.needs if need in blocked]
        if missing:
            findings[check.id] = [check.finding(Status.SKIP, f"needs {', '.join(missing)}")]
        else:
            findings[check.id] = _run_one(check, context)
        if any(finding.status in _BLOCKING for finding in findings[check.id]):
            blocked.add(check.id)
        elif check.id == _CONNECTED and any(other.samples for other in running):
            with suppress(psycopg.Error):
                context.begin_sampling()
    return [finding for check in running if check.id in chosen or check.id in blocked for finding in findings[check.id]]


def _run_one(check: Check, context: Context) -> list[Finding]:
    try:
        return list(check.run(context))
    except (psycopg.Error, PgreplError) as error:
        text = error.diag.message_primary if isinstance(error, psycopg.Error) else None
        summary = text or " ".join(str(error).split())
        fix = context.let_see(check.grant) if check.grant and error.sqlstate == _PRIVILEGE else ()
        return [
            check.finding(Status.UNKNOWN, f"could not be found out: {summary}", {"sqlstate": error.sqlstate}, fix=fix)
        ]
