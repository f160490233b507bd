"""Running statements as the role that is set up, so that what they make belongs to it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgrepl.names import quote_ident
from pgrepl.provision.inventory import Session
from pgrepl.provision.steps import Statement

if TYPE_CHECKING:
    import psycopg

_MEMBER = """
SELECT pg_has_role(r.oid, 'SET'), pg_has_role(r.oid, 'MEMBER WITH ADMIN OPTION')
FROM pg_catalog.pg_roles r WHERE r.rolname = %s
"""


@dataclass(frozen=True)
class Member:
    """Whether the connected role may act as ``role``, and whether it has to make itself a member for that while.

    ``there`` is whether the role is there already. Without a role the connected one acts for itself.
    """

    role: str | None
    there: bool
    allowed: bool
    joins: bool
    session: Session

    def run(self, statements: Iterable[str]) -> tuple[Statement, ...]:
        """Have statements run as the role; where somebody else is to run them, by a superuser."""
        if self.role is None:
            return tuple(map(Statement, statements))
        role, connected = quote_ident(self.role), quote_ident(self.session.role)
        lines = [*self._entry(), *statements, "RESET ROLE"]
        if self.allowed and self.joins:
            lines.append(f"REVOKE {role} FROM {connected} GRANTED BY {connected}")
        return tuple(map(Statement, lines))

    def read(self, conn: psycopg.Connection, query: str) -> list[Any]:
        """Ask as the role, in a transaction that is rolled back."""
        with conn.transaction(force_rollback=True):
            for statement in self._entry():
                conn.execute(statement.encode())
            return conn.execute(query.encode()).fetchall()

    def _entry(self) -> list[str]:
        if self.role is None:
            return []
        role = quote_ident(self.role)
        become = f"SET LOCAL ROLE {role}"
        if not (self.allowed and self.joins):
            return [become]
        # Who has CREATEROLE may make itself a member of what it administers; nothing of that is left behind.
        return [f"GRANT {role} TO {quote_ident(self.session.role)} WITH INHERIT FALSE, SET TRUE", become]


def member(conn: psycopg.Connection, session: Session, role: str | None, *, comes: bool) -> Member:
    """Find out whether the connected role may act as another; ``comes`` is whether that one is there, or will be."""
    if role is None or role == session.role:
        return Member(None, True, True, False, session)
    found = conn.execute(_MEMBER, [role]).fetchone()
    if session.superuser:
        return Member(role, found is not None, comes, False, session)
    if found is None:
        return Member(role, False, comes, not session.becomes_new_roles, session)
    may_set, may_admin = found
    return Member(role, True, may_set or may_admin, not may_set, session)
