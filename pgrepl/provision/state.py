"""What a store needs on the server: schema ``etl`` with its functions or tables, or a table of bookmarks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from pgrepl import migrations
from pgrepl.catalog import etl_schema
from pgrepl.errors import OperationError
from pgrepl.migrations import scripts
from pgrepl.names import quote_ident
from pgrepl.provision.grants import grant_step
from pgrepl.provision.inventory import STATE_SCHEMA, Session
from pgrepl.provision.member import Member
from pgrepl.provision.steps import Statement, Status, Step
from pgrepl.provision.wanted import Wanted
from pgrepl.stores import tables

if TYPE_CHECKING:
    import psycopg

EVENT_TRIGGER = "supabase_etl_ddl_message_trigger"
_TRIGGER = f"event trigger {EVENT_TRIGGER}"
STATE_TABLES = ("replication_state", "table_schemas", "table_columns", "destination_tables_metadata")
DESCRIBE_FUNCTIONS = ("describe_table_schema", "describe_table_identity")
_CHANGE = "SELECT, INSERT, UPDATE, DELETE"

# has_…_privilege gives null for an object that is not there. A role that is not there has what PUBLIC has.
_DATABASE = "SELECT has_database_privilege(%s::name, current_database(), 'CREATE')"
_SCHEMA = """
SELECT pg_catalog.pg_get_userbyid(n.nspowner)::text, pg_has_role(n.nspowner, 'USAGE'),
       has_schema_privilege(%(role)s::name, n.oid, 'USAGE') AND has_schema_privilege(%(role)s::name, n.oid, 'CREATE'),
       has_schema_privilege(%(role)s::name, n.oid, 'USAGE')
FROM pg_catalog.pg_namespace n WHERE n.nspname = %(schema)s
"""
_TABLES = """
SELECT c.relname::text, pg_has_role(c.relowner, 'USAGE'),
       has_table_privilege(%(role)s::name, c.oid, 'SELECT'),
       (SELECT bool_and(has_table_privilege(%(role)s::name, c.oid, p))
        FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) p),
       pg_catalog.pg_get_userbyid(c.relowner)::text
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %(schema)s AND c.relname = ANY (%(names)s)
"""
_FUNCTIONS = """
SELECT p.proname::text, pg_get_userbyid(p.proowner)::text, pg_has_role(p.proowner, 'USAGE'),
       has_function_privilege(%(role)s::name, p.oid, 'EXECUTE'),
       r.rolsuper, CASE WHEN %(there)s THEN pg_has_role(%(role)s::name, p.proowner, 'USAGE') ELSE false END
FROM pg_catalog.pg_proc p
JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
JOIN pg_catalog.pg_roles r ON r.oid = p.proowner
WHERE n.nspname = 'etl' AND p.proname = ANY (%(names)s) AND p.proargtypes::text = %(argument)s
"""
_OID = "26"
_COLUMNS = """
SELECT array_agg(format('%%s %%s', a.attname, format_type(a.atttypid, a.atttypmod)) ORDER BY a.attname)
FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relname = %s AND c.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped
"""
_BOOKMARK_COLUMNS = {"key text", "value jsonb", "updated_at timestamp with time zone"}


class _Found(NamedTuple):
    """A table that is there, and what of it the role has already."""

    owned: bool
    readable: bool
    changeable: bool
    owner: str


def state_steps(conn: psycopg.Connection, session: Session, wanted: Wanted, member: Member) -> list[Step]:
    """Plan the objects of the store that is wanted, as far as they belong into this database.

    Raises OperationError for objects that are there and cannot serve.
    """
    match wanted.store:
        case "memory":
            return _memory(conn, session, wanted, member)
        case "postgres":
            return _postgres(conn, session, wanted, member)
        case "bookmarks" if not wanted.state_elsewhere:
            return bookmarks_steps(conn, session, wanted, member)
        case _:
            return []


def _memory(conn: psycopg.Connection, session: Session, wanted: Wanted, member: Member) -> list[Step]:
    """The functions that pgsense-rs makes anew at each start, which it can only if they are its role's own."""
    steps = _create_on_database(conn, session, wanted, member)
    schema = _schema(conn, STATE_SCHEMA, member)
    functions = conn.execute(
        _FUNCTIONS,
        {"role": _who(member), "there": member.there, "names": list(DESCRIBE_FUNCTIONS), "argument": _OID},
    ).fetchall()
    making: list[str] = [] if schema else [scripts.CREATE_SCHEMA]
    if schema and wanted.role is not None:
        _, owned, has, _ = schema
        steps.append(_grant(has, owned and member.allowed, STATE_SCHEMA, wanted.role, *_SCHEMA_GRANT))
    for name, owner, _, _, by_superuser, replaceable in functions:
        if wanted.role is not None and not replaceable and not by_superuser:
            raise OperationError(
                f"etl.{name} belongs to {owner}, so that pgsense-rs could not replace it as {wanted.role}",
                hint=f"let it connect as {owner}, or give --store postgres",
            )
    if len(functions) < len(DESCRIBE_FUNCTIONS):
        making += migrations.describe_functions()
    what = "functions of pgsense-rs"
    if making:
        may = member.allowed and (member.role is not None or session.create_in_database or schema is not None)
        statements = member.run(making)
        steps.append(Step("schema", "planned" if may else "needs_superuser", STATE_SCHEMA, what, statements))
    taken = [name for name, *_, replaceable in functions if wanted.role is not None and not replaceable]
    if taken:
        role = quote_ident(wanted.role or session.role)
        moved = tuple(Statement(f"ALTER FUNCTION etl.{name}(oid) OWNER TO {role}") for name in taken)
        status: Status = "planned" if session.superuser else "needs_superuser"
        steps.append(Step("schema", status, STATE_SCHEMA, f"owner of the {what}", moved, "altered"))
    if not making and not taken:
        steps.append(Step("schema", "exists", STATE_SCHEMA, what))
    return steps


_SCHEMA_GRANT = (
    "USAGE and CREATE on the schema",
    f"GRANT USAGE, CREATE ON SCHEMA {STATE_SCHEMA}",
)


def _postgres(conn: psycopg.Connection, session: Session, wanted: Wanted, member: Member) -> list[Step]:
    making = Step("schema", "planned", STATE_SCHEMA, "schema", (Statement(scripts.CREATE_SCHEMA),))
    schema = _schema(conn, STATE_SCHEMA, member)
    if schema is None and not session.create_in_database:
        making = Step("schema", "needs_superuser", STATE_SCHEMA, "schema", making.statements)
    steps = [Step("schema", "exists", STATE_SCHEMA, "schema")] if schema else [making]
    if wanted.only != "schema":
        steps += _migrations(conn)
    comes = steps[0].status != "needs_superuser"
    migrated = all(step.status != "needs_superuser" or step.object == EVENT_TRIGGER for step in steps)
    if wanted.role is not None:
        steps += _create_on_database(conn, session, wanted, member)
        _, owned, has, _ = schema or ("", comes, False, False)
        usable = _grant(has, owned and member.allowed, STATE_SCHEMA, wanted.role, *_SCHEMA_GRANT)
        comes = usable.status != "needs_superuser"
        steps.append(usable)
        if wanted.only != "schema":
            steps += _use_of_state(conn, wanted.role, member, made=migrated)
    if wanted.only != "migrations":
        steps += _pipelines(conn, wanted, member, made=comes)
    return steps


def _migrations(conn: psycopg.Connection) -> list[Step]:
    """Apply what is missing, or record what is there; the same lock as everybody's keeps others out meanwhile."""
    schema = etl_schema.read(conn)
    statuses = schema.statuses()
    if any(status.state == "missing" and status.objects_there for status in statuses):
        seed = migrations.plan_seed(conn)
        recorded = ", ".join(map(str, seed.versions))
        return [Step("migrations", "planned", recorded, "recorded: it is there", (_lock(conn), *_sql(seed.statements)))]
    steps = [
        Step("migrations", "exists", str(status.version), status.description) for status in statuses if status.is_good
    ]
    for step in migrations.plan(conn).steps:
        version, description = str(step.migration.version), step.migration.description
        statements = [sql for sql in step.statements if sql != scripts.CREATE_SCHEMA]
        if step.obstacle is not None:
            text = f"{description}: {step.obstacle}"
            sql = (*statements, *step.event_trigger, step.record)
            steps.append(Step("migrations", "needs_superuser", version, text, _sql(sql)))
        elif not step.event_trigger:
            sql = (*statements, step.record)
            steps.append(Step("migrations", "planned", version, description, (_lock(conn), *_sql(sql))))
        else:
            if all(lacking.object == _TRIGGER for lacking in schema.differences(step.migration.version)):
                steps.append(Step("migrations", "exists", version, description))
            else:
                steps.append(Step("migrations", "planned", version, description, (_lock(conn), *_sql(statements))))
            sql = (*step.event_trigger, step.record)
            text = f"event trigger, which completes {version}"
            steps.append(Step("migrations", "planned", EVENT_TRIGGER, text, _sql(sql), attempt=True))
    return steps


def _lock(conn: psycopg.Connection) -> Statement:
    key = migrations.lock_key(conn.info.dbname)
    return Statement(f"SELECT pg_catalog.pg_advisory_xact_lock({key})", advisory=key)


def _use_of_state(conn: psycopg.Connection, role: str, member: Member, *, made: bool) -> list[Step]:
    found = _tables(conn, STATE_SCHEMA, STATE_TABLES, member)
    tracker = _tables(conn, STATE_SCHEMA, (etl_schema.TRACKER,), member)
    rows = conn.execute(
        _FUNCTIONS,
        {"role": _who(member), "there": member.there, "names": list(DESCRIBE_FUNCTIONS), "argument": _OID},
    ).fetchall()
    functions = {name: (owned, usable) for name, _, owned, usable, *_ in rows}
    # What is not there yet will be the connected role's own, unless somebody else makes it.
    may = [table.owned for table in (*found.values(), *tracker.values()) if not table.changeable]
    may += [owned for owned, usable in functions.values() if not usable]
    allowed = member.allowed and made and all(may)
    lacking = [name for name in STATE_TABLES if name not in found or not found[name].changeable]
    unusable = [name for name in DESCRIBE_FUNCTIONS if name not in functions or not functions[name][1]]
    unread = etl_schema.TRACKER not in tracker or not tracker[etl_schema.TRACKER].readable
    tables = ", ".join(f"etl.{name}" for name in lacking or STATE_TABLES)
    signatures = ", ".join(f"etl.{name}(oid)" for name in unusable or DESCRIBE_FUNCTIONS)
    return [
        _grant(not lacking, allowed, STATE_SCHEMA, role, f"{_CHANGE} on its tables", f"GRANT {_CHANGE} ON {tables}"),
        _grant(
            not unread,
            allowed,
            STATE_SCHEMA,
            role,
            f"SELECT on {etl_schema.TRACKER}",
            f"GRANT SELECT ON etl.{etl_schema.TRACKER}",
        ),
        _grant(
            not unusable,
            allowed,
            STATE_SCHEMA,
            role,
            "EXECUTE on its functions",
            f"GRANT EXECUTE ON FUNCTION {signatures}",
        ),
    ]


def _pipelines(conn: psycopg.Connection, wanted: Wanted, member: Member, *, made: bool) -> list[Step]:
    """pgrepl's own table, which belongs to the role that writes it."""
    name = f"{STATE_SCHEMA}.{tables.PIPELINES}"
    found = _tables(conn, STATE_SCHEMA, (tables.PIPELINES,), member).get(tables.PIPELINES)
    if found is None:
        status: Status = "planned" if made and member.allowed else "needs_superuser"
        return [Step("schema", status, name, "pgrepl's own table", member.run([tables.CREATE_PIPELINES]))]
    if wanted.role is not None and found.owner != wanted.role and not found.changeable:
        grant = f"GRANT {_CHANGE} ON {name}"
        return [_grant(False, found.owned and member.allowed, name, wanted.role, f"{_CHANGE}", grant)]
    return [Step("schema", "exists", name, "pgrepl's own table")]


def bookmarks_steps(conn: psycopg.Connection, session: Session, wanted: Wanted, member: Member) -> list[Step]:
    """Plan the table of bookmarks and what the role needs on it.

    Raises OperationError when something else has its name.
    """
    name = wanted.state_table
    label = f"{tables.BOOKMARKS_SCHEMA}.{name}"
    qualified = tables.qualified_bookmarks(name)
    schema = _schema(conn, tables.BOOKMARKS_SCHEMA, member)
    if schema is None:
        raise OperationError(
            f"there is no schema {tables.BOOKMARKS_SCHEMA} for the table of bookmarks",
            hint=f"CREATE SCHEMA {tables.BOOKMARKS_SCHEMA}",
        )
    found = _tables(conn, tables.BOOKMARKS_SCHEMA, (name,), member).get(name)
    if found is None:
        row = conn.execute("SELECT has_schema_privilege(%s, 'CREATE')", [tables.BOOKMARKS_SCHEMA]).fetchone()
        may = bool(row and row[0])
        statement = Statement(tables.create_bookmarks(name))
        steps = [Step("schema", "planned" if may else "needs_superuser", label, "table of bookmarks", (statement,))]
    else:
        row = conn.execute(_COLUMNS, [tables.BOOKMARKS_SCHEMA, name]).fetchone()
        if row is None or set(row[0] or ()) != _BOOKMARK_COLUMNS:
            raise OperationError(f"{label} is there, but no table of bookmarks", hint="choose another --state-table")
        may = found.owned
        steps = [Step("schema", "exists", label, "table of bookmarks")]
    if member.role is None:
        return steps
    _, owned, _, usage = schema
    grant = f"GRANT USAGE ON SCHEMA {tables.BOOKMARKS_SCHEMA}"
    usable = _grant(usage, owned and member.allowed, tables.BOOKMARKS_SCHEMA, member.role, "USAGE on the schema", grant)
    changeable = found is not None and found.changeable
    grant = f"GRANT {_CHANGE} ON {qualified}"
    return [*steps, usable, _grant(changeable, may and member.allowed, label, member.role, _CHANGE, grant)]


def _create_on_database(conn: psycopg.Connection, session: Session, wanted: Wanted, member: Member) -> list[Step]:
    """Let it CREATE in the database: what exists is made again at each start, IF NOT EXISTS, which asks for it."""
    if wanted.role is None:
        return []
    row = conn.execute(_DATABASE, [_who(member)]).fetchone()
    grant = f"GRANT CREATE ON DATABASE {quote_ident(session.database)}"
    may = session.grants_create and member.allowed
    return [_grant(bool(row and row[0]), may, session.database, wanted.role, "CREATE on the database", grant)]


def _grant(has: bool, may: bool, where: str, role: str, summary: str, grant: str) -> Step:
    return grant_step(has, may, where, summary, f"{grant} TO {quote_ident(role)}")


def _schema(conn: psycopg.Connection, name: str, member: Member) -> tuple[str, bool, bool, bool] | None:
    """Its owner, whether the connected role may do what that may, and the role has USAGE and CREATE, and USAGE."""
    row = conn.execute(_SCHEMA, {"role": _who(member), "schema": name}).fetchone()
    return None if row is None else (row[0], row[1], row[2], row[3])


def _tables(conn: psycopg.Connection, schema: str, names: Sequence[str], member: Member) -> dict[str, _Found]:
    rows = conn.execute(_TABLES, {"role": _who(member), "schema": schema, "names": list(names)})
    return {name: _Found(*rest) for name, *rest in rows}


def _sql(statements: Sequence[str]) -> tuple[Statement, ...]:
    return tuple(map(Statement, statements))


def _who(member: Member) -> str:
    if member.role is None:
        return member.session.role
    return member.role if member.there else "public"
