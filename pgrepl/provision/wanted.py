"""What a person asks setup for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pgrepl.errors import InputError
from pgrepl.stores.tables import BOOKMARKS_SCHEMA, DEFAULT_BOOKMARKS, check_bookmarks_name

DEFAULT_PUBLICATION = "pgsense_pub"
OPERATIONS = ("insert", "update", "delete", "truncate")
PARTS = ("check", "role", "publication", "schema", "migrations")
STORES = ("memory", "postgres", "bookmarks")

Part = Literal["check", "role", "publication", "schema", "migrations"]
Store = Literal["memory", "postgres", "bookmarks"]

# NAMEDATALEN - 1: the server cuts a longer name off with no more than a notice, and then it is another name.
_NAME_BYTES = 63


@dataclass(frozen=True)
class Wanted:
    """The publication, the role that is to read it, and what goes into the publication.

    At most one of ``tables`` (pairs of schema and name), ``schemas``, ``all_tables`` and ``literally_all`` is given;
    with none of them the publication must be there already and keeps its tables. ``publish`` and ``via_root`` are None
    where nothing was said: then an existing publication keeps what it has. ``only`` does one part alone; the checks
    come first in any case.

    ``store`` is where the pipeline will keep its state, whose objects are made, too: with ``memory`` the functions that
    pgsense-rs needs all the same; with None nothing is. The bookmarks are in the table ``state_table``, which is not in
    this database when they are ``state_elsewhere``: then it is planned by ``plan_bookmarks``.

    Raises InputError for names that cannot be, and for wishes that exclude each other.
    """

    publication: str = DEFAULT_PUBLICATION
    role: str | None = None
    password: str | None = field(default=None, repr=False)
    reset_password: bool = False
    tables: tuple[tuple[str, str], ...] = ()
    schemas: tuple[str, ...] = ()
    all_tables: bool = False
    literally_all: bool = False
    publish: tuple[str, ...] | None = None
    via_root: bool | None = None
    skip_keyless: bool = False
    only: Part | None = None
    store: Store | None = None
    state_table: str = DEFAULT_BOOKMARKS
    state_elsewhere: bool = False

    def __post_init__(self) -> None:
        _check_name(self.publication, "publication")
        if self.role is not None:
            _check_name(self.role, "role")
            if self.role in ("public", "none") or self.role.startswith("pg_"):
                raise InputError(
                    f"{self.role!r} is a name that PostgreSQL keeps for itself", hint="choose another role"
                )
        elif self.password is not None or self.reset_password or self.only == "role":
            raise InputError("no role is named", hint="name it with --role")
        if self.password == "":
            raise InputError(f"the password for role {self.role!r} is empty")
        if self.reset_password and self.password is None:
            raise InputError(
                "no password to set is given", hint="use --password-file, --password-prompt or PGREPL_ROLE_PASSWORD"
            )
        if self.only == "migrations" and self.store != "postgres":
            raise InputError("only the postgres store has migrations", hint="give --store postgres")
        if self.only == "schema" and self.store is None:
            raise InputError("no store is named", hint="name it with --store")
        if self.store != "bookmarks" and (self.state_elsewhere or self.state_table != DEFAULT_BOOKMARKS):
            raise InputError("--state-dsn and --state-table are for the bookmarks store", hint="give --store bookmarks")
        check_bookmarks_name(self.state_table)
        if sum(map(bool, (self.tables, self.schemas, self.all_tables, self.literally_all))) > 1:
            raise InputError("--table, --in-schema, --all-tables and --literally-all exclude each other")
        if self.literally_all and self.skip_keyless:
            raise InputError(
                "--literally-all cannot leave tables out",
                hint="--all-tables --skip-keyless lists those that have a key",
            )
        if self.publish is not None and not self.publish:
            raise InputError("no operation to publish is named", hint=f"known: {', '.join(OPERATIONS)}")
        for operation in self.publish or ():
            if operation not in OPERATIONS:
                raise InputError(f"{operation!r} cannot be published", hint=f"known: {', '.join(OPERATIONS)}")

    @property
    def names_tables(self) -> bool:
        """Whether anything is said about what goes into the publication."""
        return bool(self.tables or self.schemas or self.all_tables or self.literally_all)

    @property
    def state_here(self) -> bool:
        """Whether tables of the store will be in the database that is published, where nothing must publish them."""
        return self.store == "postgres" or (self.store == "bookmarks" and not self.state_elsewhere)

    def keeps_state_in(self, schema: str, table: str) -> bool:
        """Whether a table holds state, be it what is wanted here or supabase/etl's, which may be there in any case."""
        bookmarks = self.store == "bookmarks" and self.state_here
        return schema == "etl" or (bookmarks and (schema, table) == (BOOKMARKS_SCHEMA, self.state_table))


def _check_name(name: str, what: str) -> None:
    if not name or "\0" in name:
        raise InputError(f"{name!r} cannot be the name of a {what}")
    if len(name.encode()) > _NAME_BYTES:
        raise InputError(f"the name of the {what} {name!r} is longer than {_NAME_BYTES} bytes")
