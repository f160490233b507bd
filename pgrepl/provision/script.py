"""A plan as a script for psql."""

from __future__ import annotations

from collections.abc import Iterable

from pgrepl.names import quote_ident
from pgrepl.provision.apply import lock_timeout_setting
from pgrepl.provision.steps import Plan, Step


def needs_script(*plans: Plan) -> str | None:
    """Write what the connected role may not do as a script for somebody who may; None when there is nothing."""
    scripts = []
    for plan in plans:
        if plan.left_out:
            title = f"to be run as a superuser in database {plan.database}"
            scripts.append(_elsewhere(plan) + _transaction(plan.left_out, title))
    return "\n".join(scripts) or None


def dry_run_script(*plans: Plan, lock_timeout: float) -> str:
    """Write what ``apply`` would run, to the same effect but for passwords, which are a comment at the end.

    What stays, and why, is a comment. What the connected role may not do follows as one, too, so that the same role can
    run the whole.
    """
    scripts = []
    for plan in plans:
        planned = [step for step in plan.steps if step.status == "planned"]
        if planned:
            title = f"what {plan.command} would run in database {plan.database}"
            scripts.append(_elsewhere(plan) + _transaction(planned, title, lock_timeout))
    script = "\n".join(scripts) or "-- nothing to do\n"
    for step in (step for plan in plans for step in plan.skipped):
        script += comment(f"{step.name} {step.object} {step.summary}") + "\n"
    needs = needs_script(*plans)
    return script + (comment(needs) + "\n" if needs else "")


def _elsewhere(plan: Plan) -> str:
    """Change to the database where a plan is not for the one that psql is connected to."""
    if plan.address is None:
        return ""
    host, port = plan.address
    return f"\\connect {quote_ident(plan.database)} - {quote_ident(host)} {port}\n"


def comment(text: str) -> str:
    """Make each line of a text a comment, whatever line ends stand in the names in it."""
    return "\n".join(f"-- {line}".rstrip() for line in text.splitlines())


def _transaction(steps: Iterable[Step], title: str, lock_timeout: float | None = None) -> str:
    lines = [comment(title), "\\set ON_ERROR_STOP on", "BEGIN;"]
    if lock_timeout is not None:
        lines.append(lock_timeout_setting(lock_timeout) + ";")
    comments = []
    for step in steps:
        runnable = [statement.text for statement in step.statements if not statement.is_comment]
        lines += [_attempt(runnable)] if step.attempt and lock_timeout is not None else [f"{sql};" for sql in runnable]
        comments += [statement.text for statement in step.statements if statement.is_comment]
    lines.append("COMMIT;")
    return "\n".join(lines + comments) + "\n"


def _attempt(statements: Iterable[str]) -> str:
    """Undo the statements where the connected role may not run them, and go on; the block is a savepoint."""
    body = "".join(f"{sql};\n" for sql in statements)
    return (
        f"DO $attempt$\nBEGIN\n{body}EXCEPTION WHEN insufficient_privilege THEN\n"
        "RAISE WARNING 'left to somebody else: %', SQLERRM;\nEND\n$attempt$;"
    )
