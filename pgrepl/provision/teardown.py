"""The way back: what setup made, or may have made, and nothing else.

Nothing records what setup did, so that what it gives is taken for its work and everything else for somebody else's. A
role that owns anything else, that has another privilege or attribute, or that is known in another database, stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from pgrepl.catalog import publications, roles, slots
from pgrepl.catalog.slots import Slot
from pgrepl.errors import OperationError
from pgrepl.names import quote_ident, signed_id, unsigned_id
from pgrepl.provision import inventory
from pgrepl.provision.inventory import STATE_SCHEMA, Session
from pgrepl.provision.member import Member, member
from pgrepl.provision.state import EVENT_TRIGGER
from pgrepl.provision.steps import Note, Plan, Statement, Step, StepName
from pgrepl.stores import tables
from pgrepl.stores.tables import DEFAULT_BOOKMARKS

if TYPE_CHECKING:
    import psycopg


@dataclass(frozen=True)
class Unwanted:
    """What is to go: a publication, its pipeline's slots and state, and the role if one is named.

    ``pipeline_id`` is that of the database, unsigned. ``everything`` takes the state's tables and functions along, of
    all pipelines of the database. ``state_table`` is where bookmarks are, in this database or another.
    """

    publication: str
    pipeline_id: int
    role: str | None = None
    everything: bool = False
    state_table: str = DEFAULT_BOOKMARKS


# Known by name and kind, so that what somebody else put into the schema is not mistaken for state.
_STATE = {
    "table": (
        "_sqlx_migrations",
        "destination_tables_metadata",
        "pgrepl_pipelines",
        "replication_state",
        "table_columns",
        "table_mappings",
        "table_schemas",
    ),
    "function": ("describe_table_identity(oid)", "describe_table_schema(oid)", "emit_schema_change_messages()"),
    "type": ("destination_table_schema_status", "table_state"),
}
_WITH_ROWS = ("replication_state", "table_schemas", "destination_tables_metadata", tables.PIPELINES)

_PIPELINES = "SELECT pipeline_id, slot_name, publications FROM etl.pgrepl_pipelines"
_ROW_TABLES = """
SELECT c.relname::text, pg_catalog.pg_get_userbyid(c.relowner)::text,
       has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')
       AND has_table_privilege(c.oid, 'DELETE')
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relname = ANY (%s) AND c.relkind = 'r'
ORDER BY 1
"""
_SCHEMA = """
SELECT n.oid, pg_catalog.pg_get_userbyid(n.nspowner)::text, pg_has_role(n.nspowner, 'USAGE')
FROM pg_catalog.pg_namespace n WHERE n.nspname = %s
"""
_TRIGGER = """
SELECT t.oid, pg_has_role(t.evtowner, 'USAGE') FROM pg_catalog.pg_event_trigger t
JOIN pg_catalog.pg_proc p ON p.oid = t.evtfoid
WHERE t.evtname = %s AND p.pronamespace = %s
"""
# What belongs to something else goes with it: indexes, row types, sequences of identity columns.
_OBJECTS = """
SELECT 'table', c.relname::text, c.oid
FROM pg_catalog.pg_class c
WHERE c.relnamespace = %(schema)s AND c.relkind NOT IN ('i', 'I', 't')
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
                  WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype IN ('i', 'a')
                    AND d.refclassid = 'pg_class'::regclass)
  AND c.relkind <> 'c'
UNION ALL
SELECT 'function', format('%%s(%%s)', p.proname, oidvectortypes(p.proargtypes)), p.oid
FROM pg_catalog.pg_proc p WHERE p.pronamespace = %(schema)s
UNION ALL
SELECT 'type', t.typname::text, t.oid
FROM pg_catalog.pg_type t
WHERE t.typnamespace = %(schema)s AND t.typelem = 0 AND t.typtype <> 'm'
  AND (t.typrelid = 0 OR (SELECT c.relkind = 'c' FROM pg_catalog.pg_class c WHERE c.oid = t.typrelid))
ORDER BY 1, 2
"""
_BOOKMARKS = """
SELECT c.oid, pg_has_role(c.relowner, 'USAGE'),
       has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT'),
       has_table_privilege(c.oid, 'DELETE')
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relname = %s AND c.relkind = 'r'
  AND (SELECT array_agg(a.attname::text ORDER BY a.attname) FROM pg_catalog.pg_attribute a
       WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) = '{key,updated_at,value}'
"""
_PUBLICATION = "SELECT p.oid, pg_has_role(p.pubowner, 'USAGE') FROM pg_catalog.pg_publication p WHERE p.pubname = %s"


def plan_teardown(
    conn: psycopg.Connection, unwanted: Unwanted, state: psycopg.Connection | None = None
) -> tuple[Plan, ...]:
    """Find out what is there to go, and what of that the connected role may take away.

    ``state`` is the connection to the database of the bookmarks where that is another one. The plans are in the order
    in which they are to be run: what the role has there goes before the role. Slots go last, since their end cannot be
    rolled back. Raises OperationError for a slot that is in use.
    """
    session = inventory.session(conn)
    notes: list[Note] = []
    publication = conn.execute(_PUBLICATION, [unwanted.publication]).fetchone()
    tables_of_state = _state_tables(conn, session)
    pipelines, named = _pipelines(conn, unwanted, tables_of_state)
    going = _slots(conn, session, unwanted, pipelines, named)
    slot_names = {*named, *(slot.name for slot in going)}
    acting = member(conn, session, unwanted.role, comes=True)
    dropped: set[int] = set() if publication is None else {publication[0]}
    if unwanted.everything:
        steps = _etl_objects(conn, session, acting, dropped, notes)
    else:
        steps = _etl_rows(conn, pipelines, tables_of_state)
    here = inventory.place(conn)
    if state is not None and inventory.is_same_database(conn, state):
        state = None
    elsewhere = None if state is None else _elsewhere(state, unwanted, slot_names)
    if elsewhere is None:
        steps += _bookmarks(conn, unwanted, slot_names, dropped)
    why_not: list[str] = []
    if unwanted.role is not None:
        covered = publications.published_tables(conn, [unwanted.publication]) if publication else []
        same_server = elsewhere if elsewhere and elsewhere.place.server == here.server else None
        published = {table.oid for table in covered}
        revokes, leaves, why_not = _role(conn, session, unwanted, published, dropped, same_server)
        steps += revokes
    if publication is not None:
        drop = Statement(f"DROP PUBLICATION {quote_ident(unwanted.publication)}")
        steps.append(
            _step("publication", session.superuser or publication[1], unwanted.publication, "is dropped", drop)
        )
    first = () if elsewhere is None else (*elsewhere.steps, *(() if why_not else elsewhere.revokes))
    if unwanted.role is not None:
        if why_not:
            steps.append(Step("role", "skipped", unwanted.role, f"stays: {'; '.join(why_not)}"))
        elif leaves is not None:
            # Whoever ends the role must have ended its privileges before.
            may = leaves and not any(step.status == "needs_superuser" for step in (*first, *steps))
            drop = Statement(f"DROP ROLE {quote_ident(unwanted.role)}")
            steps.append(_step("role", may, unwanted.role, "is dropped", drop))
    for slot in going:
        drop = Statement(f"SELECT pg_catalog.pg_drop_replication_slot('{slot.name}')")
        lost = "" if slot.lost or slot.confirmed_flush_lsn is None else f"; its reader is at {slot.confirmed_flush_lsn}"
        # Members of a managed service's stand-in for REPLICATION may, too.
        connected = roles.can_replicate(conn)
        may = connected is not None and connected.can_replicate
        steps.append(_step("slot", may, slot.name, f"is dropped{lost}", drop))
    if state is None or elsewhere is None:
        return (Plan(session.database, tuple(steps), tuple(notes), command="teardown"),)
    return (
        Plan(elsewhere.place.database, first, address=_address(state), command="teardown"),
        Plan(session.database, tuple(steps), tuple(notes), address=_address(conn), command="teardown"),
    )


def _address(conn: psycopg.Connection) -> tuple[str, int]:
    return conn.info.host, conn.info.port


def _step(name: StepName, may: bool, where: str, summary: str, *statements: Statement) -> Step:
    return Step(name, "planned" if may else "needs_superuser", where, summary, statements, "dropped")


def _state_tables(conn: psycopg.Connection, session: Session) -> dict[str, Member]:
    """The tables with rows of pipelines, and as whom the connected role may read and empty each."""
    found = {}
    for name, owner, usable in conn.execute(_ROW_TABLES, [STATE_SCHEMA, list(_WITH_ROWS)]).fetchall():
        found[name] = member(conn, session, None if usable else owner, comes=True)
    return found


def _pipelines(conn: psycopg.Connection, unwanted: Unwanted, state: dict[str, Member]) -> tuple[set[int], set[str]]:
    """The unsigned ids of the publication's pipelines, and the slots that they are known to use."""
    ids = {unwanted.pipeline_id}
    named: set[str] = set()
    reader = state.get(tables.PIPELINES)
    if reader is not None and reader.allowed:
        for pipeline, slot, read in reader.read(conn, _PIPELINES):
            if unwanted.publication in read:
                ids.add(unsigned_id(pipeline))
                named.add(slot)
            else:
                ids.discard(unsigned_id(pipeline))
    return ids, named


def _slots(
    conn: psycopg.Connection, session: Session, unwanted: Unwanted, pipelines: set[int], named: set[str]
) -> list[Slot]:
    going = []
    for slot in slots.all_of(conn):
        if slot.database != session.database or slot.plugin is None:
            continue
        ours = slot.kind != "other" and (unwanted.everything or slot.pipeline_id in pipelines)
        if not ours and slot.name not in named:
            continue
        if slot.active:
            holder = slot.holder
            who = f"process {holder.pid} ({holder.application_name})" if holder else "a session"
            raise OperationError(
                f"slot {slot.name} is in use by {who}, nothing was changed", hint="stop it first", sqlstate="55006"
            )
        going.append(slot)
    return going


def _etl_rows(conn: psycopg.Connection, pipelines: Iterable[int], state: dict[str, Member]) -> list[Step]:
    ids = ", ".join(str(signed_id(each)) for each in sorted(pipelines))
    steps: list[Step] = []
    if not ids:
        return steps
    for name, reader in state.items():
        where = f"etl.{name} WHERE pipeline_id IN ({ids})"
        if not reader.allowed:
            steps.append(Step("state", "skipped", f"etl.{name}", "cannot be read: rows of the pipeline may be left"))
            continue
        ((rows,),) = reader.read(conn, f"SELECT count(*) FROM {where}")  # noqa: S608
        if rows:
            delete = reader.run([f"DELETE FROM {where}"])  # noqa: S608
            steps.append(_step("state", True, f"etl.{name}", f"{rows} rows of the pipeline", *delete))
    return steps


def _etl_objects(
    conn: psycopg.Connection, session: Session, acting: Member, dropped: set[int], notes: list[Note]
) -> list[Step]:
    found = conn.execute(_SCHEMA, [STATE_SCHEMA]).fetchone()
    if found is None:
        return []
    oid, owner, owned = found
    steps = []
    trigger = conn.execute(_TRIGGER, [EVENT_TRIGGER, oid]).fetchone()
    may_end_trigger = True
    if trigger is not None:
        may_end_trigger = session.superuser or trigger[1]
        drop = Statement(f"DROP EVENT TRIGGER {EVENT_TRIGGER}")
        steps.append(_step("schema", may_end_trigger, EVENT_TRIGGER, "event trigger", drop))
        dropped.add(trigger[0])
    objects = conn.execute(_OBJECTS, {"schema": oid}).fetchall()
    statements = []
    for kind, known in _STATE.items():
        here = [(name, each) for found_kind, name, each in objects if found_kind == kind and name in known]
        if here:
            names = ", ".join(f"etl.{name}" for name, _ in here)
            statements.append(f"DROP {kind.upper()} {names}")
            dropped.update(each for _, each in here)
    strange = [name for kind, name, _ in objects if name not in _STATE[kind]]
    if strange:
        listed = ", ".join(f"etl.{name}" for name in strange)
        notes.append(Note(f"schema {STATE_SCHEMA} stays: {listed} is not of setup's making"))
    else:
        statements.append(f"DROP SCHEMA {STATE_SCHEMA}")
        dropped.add(oid)
    as_owner = acting.role == owner and acting.allowed and not session.superuser and not owned
    may = may_end_trigger and (session.superuser or owned or as_owner)
    run = acting.run(statements) if as_owner and may else tuple(map(Statement, statements))
    if statements:
        parts = ["schema"] if not strange else []
        for kind in _STATE:
            short = [name.partition("(")[0] for each, name, _ in objects if each == kind and name in _STATE[kind]]
            parts += [f"{kind}s {', '.join(short)}"] if short else []
        steps.append(_step("schema", may, STATE_SCHEMA, "; ".join(parts), *run))
    return steps


def _bookmarks(conn: psycopg.Connection, unwanted: Unwanted, slot_names: set[str], dropped: set[int]) -> list[Step]:
    found = conn.execute(_BOOKMARKS, [tables.BOOKMARKS_SCHEMA, unwanted.state_table]).fetchone()
    if found is None:
        return []
    oid, owned, readable, deletable = found
    label = f"{tables.BOOKMARKS_SCHEMA}.{unwanted.state_table}"
    if not readable:
        return [Step("state", "skipped", label, "stays: the connected role may not read it")]
    qualified = tables.qualified_bookmarks(unwanted.state_table)
    keys = sorted(f"pgrepl::{name}" for name in slot_names)
    query = f"SELECT count(*) FILTER (WHERE key = ANY (%s)), count(*) FROM {qualified}"  # noqa: S608
    row = conn.execute(query.encode(), [keys]).fetchone()
    ours, total = row or (0, 0)
    if unwanted.everything and ours == total:
        dropped.add(oid)
        return [_step("state", owned, label, "table of bookmarks", Statement(f"DROP TABLE {qualified}"))]
    others = total - ours
    why = f"it holds {others} bookmark{'s'[: others != 1]} of others" if others else "--all would take it, too"
    steps = [Step("state", "skipped", label, f"stays: {why}")]
    if ours:
        # A slot's name has nothing in it that would need quoting.
        listed = ", ".join(f"'{key}'" for key in keys)
        delete = Statement(f"DELETE FROM {qualified} WHERE key IN ({listed})")  # noqa: S608
        steps.insert(0, _step("state", deletable, label, f"{ours} bookmarks of the pipeline", delete))
    return steps


class _Elsewhere(NamedTuple):
    """The bookmarks in a database of their own: the steps for them, the revokes if the role goes, why it may not go."""

    place: inventory.Place
    steps: tuple[Step, ...]
    revokes: tuple[Step, ...]
    why: list[str]


def _elsewhere(conn: psycopg.Connection, unwanted: Unwanted, slot_names: set[str]) -> _Elsewhere:
    session, place = inventory.session(conn), inventory.place(conn)
    dropped: set[int] = set()
    steps = tuple(_bookmarks(conn, unwanted, slot_names, dropped))
    found = conn.execute(_ATTRIBUTES, [unwanted.role]).fetchone()
    if unwanted.role is None or found is None:
        return _Elsewhere(place, steps, (), [])
    oid = found[0]
    privileges = [each for each in _privileges(conn, oid) if each.oid not in dropped and each.kind != "DATABASE"]
    ours = [each for each in privileges if each.as_setup_grants_for_bookmarks(unwanted.state_table)]
    others = [each for each in privileges if each not in ours]
    why = [f"it has {', '.join(each.granted)} on {each.name} in database {place.database}" for each in others]
    known = {each.oid for each in privileges}
    for dependency in _dependencies(conn, oid, dropped):
        if dependency.database_oid != place.database_oid or dependency.objid in dropped or dependency.part:
            continue
        if not (dependency.kind == "a" and dependency.objid in known):
            why.append(f"it owns or may use {dependency.identity} in database {place.database}")
    revokes = [
        _step("grant", may, where, summary, statement)
        for may, where, summary, statement in _revokes(session, unwanted.role, ours, [])
    ]
    return _Elsewhere(place, steps, tuple(revokes), list(dict.fromkeys(why)))


# Everything that was granted to the role in this database, object by object.
_PRIVILEGES = """
WITH item AS (
    SELECT 'DATABASE' AS kind, d.oid, quote_ident(d.datname) AS name, 0::oid AS schema, d.datdba AS owner,
           d.datacl AS acl
    FROM pg_catalog.pg_database d WHERE d.datname = current_database()
    UNION ALL
    SELECT 'SCHEMA', n.oid, quote_ident(n.nspname), n.oid, n.nspowner, n.nspacl FROM pg_catalog.pg_namespace n
    UNION ALL
    SELECT CASE c.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, c.oid,
           format('%%I.%%I', n.nspname, c.relname), n.oid, c.relowner, c.relacl
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    UNION ALL
    SELECT 'COLUMN', c.oid, format('%%I.%%I.%%I', n.nspname, c.relname, a.attname), n.oid, c.relowner, a.attacl
    FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE a.attacl IS NOT NULL
    UNION ALL
    SELECT 'FUNCTION', p.oid, format('%%I.%%I(%%s)', n.nspname, p.proname, oidvectortypes(p.proargtypes)),
           n.oid, p.proowner, p.proacl
    FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
)
SELECT i.kind, i.oid, i.name, i.schema, n.nspname::text, pg_has_role(i.owner, 'USAGE'),
       array_agg(a.privilege_type ORDER BY a.privilege_type),
       bool_and(a.grantor = i.owner AND NOT a.is_grantable)
FROM item i CROSS JOIN LATERAL aclexplode(i.acl) a LEFT JOIN pg_catalog.pg_namespace n ON n.oid = i.schema
WHERE a.grantee = %(role)s AND i.owner <> %(role)s
GROUP BY i.kind, i.oid, i.name, i.schema, n.nspname, i.owner
ORDER BY array_position(ARRAY['TABLE', 'COLUMN', 'SEQUENCE', 'FUNCTION', 'SCHEMA', 'DATABASE'], i.kind), i.name
"""
_DEFAULTS = """
SELECT pg_get_userbyid(d.defaclrole)::text, n.nspname::text, d.defaclnamespace, pg_has_role(d.defaclrole, 'USAGE'),
       array_agg(a.privilege_type ORDER BY a.privilege_type), d.oid
FROM pg_catalog.pg_default_acl d CROSS JOIN LATERAL aclexplode(d.defaclacl) a
JOIN pg_catalog.pg_namespace n ON n.oid = d.defaclnamespace
WHERE a.grantee = %s AND d.defaclobjtype = 'r'
GROUP BY 1, 2, 3, 4, d.oid ORDER BY 2, 1
"""
_ATTRIBUTES = """
SELECT r.oid, r.rolname = current_user, r.rolsuper OR r.rolcreatedb OR r.rolcreaterole OR r.rolbypassrls,
       pg_has_role(r.oid, 'MEMBER WITH ADMIN OPTION'),
       ARRAY(SELECT pg_get_userbyid(m.roleid)::text FROM pg_catalog.pg_auth_members m WHERE m.member = r.oid),
       ARRAY(SELECT pg_get_userbyid(m.member)::text FROM pg_catalog.pg_auth_members m
             WHERE m.roleid = r.oid AND NOT m.admin_option AND m.member <> m.grantor)
FROM pg_catalog.pg_roles r WHERE r.rolname = %s
"""
# Whatever else the server notes of a role: what it owns, is granted, or is named in.
_DEPENDENCIES = """
SELECT s.dbid, d.datname::text, s.classid::regclass::text, s.objid, s.deptype::text,
       CASE WHEN s.dbid IN (0, here.oid) THEN (pg_identify_object(s.classid, s.objid, 0)).identity END,
       EXISTS (SELECT FROM pg_catalog.pg_depend i
               WHERE i.classid = s.classid AND i.objid = s.objid AND i.deptype IN ('i', 'a')
                 AND i.refobjid = ANY (%(dropped)s::oid[]))
FROM pg_catalog.pg_shdepend s
LEFT JOIN pg_catalog.pg_database d ON d.oid = s.dbid
CROSS JOIN (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()) here
WHERE s.refclassid = 'pg_authid'::regclass AND s.refobjid = %(role)s
ORDER BY 2, 6
"""


class _Dependency(NamedTuple):
    """What the server notes of a role: an object of this database, of all of them or, unnamed, of another one.

    ``part`` is whether it belongs to what is dropped. ``kind`` is pg_shdepend's deptype.
    """

    database_oid: int
    database: str | None
    catalog: str
    objid: int
    kind: str
    identity: str | None
    part: bool


def _dependencies(conn: psycopg.Connection, role_oid: int, dropped: set[int]) -> list[_Dependency]:
    rows = conn.execute(_DEPENDENCIES, {"role": role_oid, "dropped": list(dropped)})
    return [_Dependency(*row) for row in rows]


def _privileges(conn: psycopg.Connection, role_oid: int) -> list[_Privilege]:
    return [_Privilege(*row) for row in conn.execute(_PRIVILEGES, {"role": role_oid})]


class _Privilege(NamedTuple):
    """What the role was granted on one object."""

    kind: str
    oid: int
    name: str
    schema_oid: int
    schema: str | None
    owned: bool
    granted: list[str]
    by_owner: bool

    def as_setup_grants(self, published: set[int], state_table: str) -> bool:
        """Whether setup would grant just that, or a part of it, on this object."""
        granted = set(self.granted)
        state = self.schema == STATE_SCHEMA
        match self.kind:
            case "DATABASE":
                allowed = {"CONNECT", "CREATE"}
            case "SCHEMA":
                allowed = {"USAGE", "CREATE"} if state else {"USAGE"}
            case "FUNCTION":
                allowed = {"EXECUTE"} if state else set()
            case "TABLE" if state or self.is_bookmarks(state_table):
                allowed = {"SELECT", "INSERT", "UPDATE", "DELETE"}
            case "TABLE":
                allowed = {"SELECT"} if self.oid in published else set()
            case _:
                allowed = set()
        return self.by_owner and granted <= allowed

    def is_bookmarks(self, table: str) -> bool:
        """Whether it is on the table of bookmarks, whose name has no quotation mark in it."""
        return self.kind == "TABLE" and self.name.replace('"', "") == f"{tables.BOOKMARKS_SCHEMA}.{table}"

    def as_setup_grants_for_bookmarks(self, table: str) -> bool:
        """Whether setup would grant just that, or a part of it, where there is nothing else of the pipeline."""
        its_schema = self.kind == "SCHEMA" and self.schema == tables.BOOKMARKS_SCHEMA
        return (self.is_bookmarks(table) or its_schema) and self.as_setup_grants(set(), table)


def _role(
    conn: psycopg.Connection,
    session: Session,
    unwanted: Unwanted,
    published: set[int],
    dropped: set[int],
    elsewhere: _Elsewhere | None,
) -> tuple[list[Step], bool | None, list[str]]:
    """The grants that go; whether the connected role may drop the role, None when it is not there; why it must stay.

    ``elsewhere`` is another database of the same server in which all that setup gave the role goes, too.
    """
    role = unwanted.role
    assert role is not None
    found = conn.execute(_ATTRIBUTES, [role]).fetchone()
    if found is None:
        return [], None, []
    oid, connected, more, admin, groups, members = found
    defaults = conn.execute(_DEFAULTS, [oid]).fetchall()
    future = {schema for _, _, schema, _, granted, _ in defaults if granted == ["SELECT"]}
    privileges = [each for each in _privileges(conn, oid) if each.oid not in dropped]
    # Tables that came after setup have their SELECT from the default privileges.
    readable = published | {
        each.oid for each in privileges if each.kind == "TABLE" and each.schema_oid in future and each.schema
    }
    ours = [each for each in privileges if each.as_setup_grants(readable, unwanted.state_table)]
    others = [each for each in privileges if each not in ours]
    why = []
    if connected:
        why.append("it is the connected role")
    if more:
        why.append("it has attributes that setup does not give")
    strange_groups = [group for group in groups if group not in roles.REPLICATION_ROLES]
    if strange_groups:
        why.append(f"it is a member of {', '.join(strange_groups)}")
    if members:
        why.append(f"{', '.join(members)} is a member of it")
    why += [f"it has {', '.join(each.granted)} on {each.name}" for each in others]
    known = {each.oid for each in privileges} | {default[-1] for default in defaults if default[4] == ["SELECT"]}
    why += elsewhere.why if elsewhere else []
    for database_oid, database, catalog, objid, kind, identity, part in _dependencies(conn, oid, dropped):
        if objid in dropped or part or (kind == "a" and objid in known):
            continue
        if elsewhere and database_oid == elsewhere.place.database_oid:
            continue
        if identity is None and database_oid:
            reason = f"it owns or may use something in database {database}"
        elif kind == "o":
            reason = f"it owns {identity}"
        elif catalog == "pg_default_acl":
            reason = f"it has default privileges {identity}"
        else:
            reason = f"it is named in the privileges or policies of {identity}"
        if reason not in why:
            why.append(reason)
    if why:
        ours, defaults = _without_the_rest(conn, unwanted, ours, others, defaults, readable)
    steps = []
    for may, where, summary, statement in _revokes(session, role, ours, defaults):
        steps.append(_step("grant", may, where, summary, statement))
    may_drop = session.superuser or (session.create_role and admin and not more)
    return steps, may_drop, why


def _without_the_rest(
    conn: psycopg.Connection,
    unwanted: Unwanted,
    ours: Sequence[_Privilege],
    others: Sequence[_Privilege],
    defaults: Sequence[tuple[str, str, int, bool, list[str], int]],
    readable: set[int],
) -> tuple[list[_Privilege], list[tuple[str, str, int, bool, list[str], int]]]:
    """Of a role that stays take only what the publication alone needed."""
    elsewhere = [each.name for each in publications.all_of(conn) if each.name != unwanted.publication]
    kept = {table.oid for table in publications.published_tables(conn, elsewhere)} if elsewhere else set()
    revoked = [each for each in ours if each.kind == "TABLE" and each.oid in readable and each.oid not in kept]
    revoked = [each for each in revoked if each.schema != STATE_SCHEMA]
    staying = {each.schema_oid for each in (*ours, *others) if each.kind != "SCHEMA" and each not in revoked}
    revoked += [
        each for each in ours if each.kind == "SCHEMA" and each.oid not in staying and each.schema != STATE_SCHEMA
    ]
    gone = {each.oid for each in revoked if each.kind == "SCHEMA"}
    return revoked, [default for default in defaults if default[2] in gone]


def _revokes(
    session: Session,
    role: str,
    ours: Iterable[_Privilege],
    defaults: Iterable[tuple[str, str, int, bool, list[str], int]],
) -> Iterable[tuple[bool, str, str, Statement]]:
    for owner, schema, _, owned, granted, _ in defaults:
        if granted == ["SELECT"]:
            place = f"FOR ROLE {quote_ident(owner)} IN SCHEMA {quote_ident(schema)}"
            revoke = f"ALTER DEFAULT PRIVILEGES {place} REVOKE SELECT ON TABLES FROM {quote_ident(role)}"  # noqa: S608
            statement = Statement(revoke)
            yield session.superuser or owned, schema, f"SELECT on future tables of {owner}", statement
    # One statement for all tables of a schema: they may be thousands.
    for (kind, place, privileges, owned), group in groupby(ours, key=_together):
        names = [each.name for each in group]
        what, listed = ", ".join(privileges), ", ".join(names)
        on = listed if kind == "TABLE" else f"{kind} {listed}"
        statement = Statement(f"REVOKE {what} ON {on} FROM {quote_ident(role)}")
        if kind in ("TABLE", "FUNCTION"):
            short = ", ".join(name.removeprefix(f"{place}.") for name in names)
            yield session.superuser or owned, place, f"{what} on {short}", statement
        else:
            yield session.superuser or owned, listed, f"{what} on the {kind.lower()}", statement


def _together(each: _Privilege) -> tuple[str, str, tuple[str, ...], bool]:
    place = each.schema if each.kind in ("TABLE", "FUNCTION") and each.schema else each.name
    return each.kind, place, tuple(each.granted), each.owned
