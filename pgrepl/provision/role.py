"""The role that reads the stream: LOGIN, the right to replicate, and its password."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg import sql

from pgrepl.catalog import roles
from pgrepl.names import quote_ident
from pgrepl.provision.inventory import Session
from pgrepl.provision.steps import Note, Statement, Status, Step
from pgrepl.provision.wanted import Wanted

if TYPE_CHECKING:
    import psycopg

_ADMIN = "SELECT pg_has_role(%s::oid, 'MEMBER WITH ADMIN OPTION')"


@dataclass(frozen=True)
class RolePlan:
    """The steps, and whether the role is there once those that the connected role may run have run."""

    steps: list[Step]
    notes: list[Note]
    comes: bool = True


def role_steps(conn: psycopg.Connection, session: Session, wanted: Wanted, name: str) -> RolePlan:
    """Plan the role itself; what it may read is planned in ``grants``.

    Without REPLICATION of its own the connected role may still make the role, which then lacks that one attribute.
    """
    found = roles.can_replicate(conn, name)
    if found is None:
        return _new(conn, session, wanted, name)
    return _existing(conn, session, wanted, found)


def _new(conn: psycopg.Connection, session: Session, wanted: Wanted, name: str) -> RolePlan:
    attributes = "LOGIN" if session.provider_role else "LOGIN REPLICATION"
    if not (session.superuser or session.create_role):
        statements = [Statement(f"CREATE ROLE {quote_ident(name)} {attributes}")]
        if session.provider_role:
            statements.append(_grant_provider_role(session.provider_role, name))
        statements.append(_later_password(name))
        return RolePlan([Step("role", "needs_superuser", name, attributes, tuple(statements))], [], comes=False)

    later: list[Step] = []
    if session.creates_replication_roles:
        statements = [Statement(f"CREATE ROLE {quote_ident(name)} {attributes}")]
        if session.provider_role:
            statements.append(_grant_provider_role(session.provider_role, name))
    else:
        attributes = "LOGIN"
        statements = [Statement(f"CREATE ROLE {quote_ident(name)} {attributes}")]
        later = [_replication_by_others(session, name)]
    notes = []
    if wanted.password is not None:
        statements.append(_password(conn, name, wanted.password))
        attributes += ", with a password"
    else:
        notes.append(Note(f"role {name} has no password yet", f"in psql: \\password {quote_ident(name)}"))
    return RolePlan([Step("role", "planned", name, attributes, tuple(statements)), *later], notes)


def _existing(conn: psycopg.Connection, session: Session, wanted: Wanted, role: roles.RoleReplication) -> RolePlan:
    name = role.name
    admin = conn.execute(_ADMIN, [role.oid]).fetchone()
    assert admin is not None
    # The right to alter a role: PostgreSQL documentation, ALTER ROLE.
    may_alter = session.superuser or (session.create_role and bool(admin[0]) and not role.superuser)
    mine: list[Statement] = []
    others: list[Statement] = []
    if not role.can_login:
        (mine if may_alter else others).append(Statement(f"ALTER ROLE {quote_ident(name)} LOGIN"))
    if wanted.reset_password and wanted.password is not None:
        if may_alter or session.role == name:
            mine.append(_password(conn, name, wanted.password))
        else:
            others.append(_later_password(name))
    later: list[Step] = []
    if not role.can_replicate:
        if session.creates_replication_roles and (may_alter or session.provider_role):
            mine.append(_replication(session, name))
        else:
            later.append(_replication_by_others(session, name))
    steps = []
    if others:
        steps.append(Step("role", "needs_superuser", name, "attributes and password", tuple(others)))
    if mine:
        steps.append(Step("role", "planned", name, "attributes and password", tuple(mine), "altered"))
    if not (mine or others or later):
        steps.append(Step("role", "exists", name, "LOGIN, may replicate"))
    notes = []
    if wanted.password is not None and not wanted.reset_password:
        notes.append(Note(f"role {name} exists: its password is left as it is", "--reset-password sets it"))
    return RolePlan([*steps, *later], notes)


def _replication(session: Session, name: str) -> Statement:
    if session.provider_role:
        return _grant_provider_role(session.provider_role, name)
    return Statement(f"ALTER ROLE {quote_ident(name)} REPLICATION")


def _replication_by_others(session: Session, name: str) -> Step:
    # Some managed services let their first user give it although the user has it not.
    status: Status = "planned" if session.managed and session.create_role else "needs_superuser"
    statement = _replication(session, name)
    return Step("role", status, name, "REPLICATION", (statement,), "altered", attempt=status == "planned")


def _grant_provider_role(provider_role: str, name: str) -> Statement:
    return Statement(f"GRANT {quote_ident(provider_role)} TO {quote_ident(name)}")


def _later_password(name: str) -> Statement:
    """A comment: psql's own command asks for the password and sends no more than the verifier."""
    lines = f"the password, in psql: \\password {quote_ident(name)}".splitlines()
    return Statement("\n".join(f"-- {line}" for line in lines))


def _password(conn: psycopg.Connection, name: str, password: str) -> Statement:
    """Set a password that neither the server nor its log ever sees: libpq makes the SCRAM verifier."""
    verifier = conn.pgconn.encrypt_password(password.encode(), name.encode(), b"scram-sha-256").decode()
    secret = sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(name), sql.Literal(verifier)).as_string(conn)
    return Statement(_later_password(name).text, secret=secret)
