"""What a person asks setup for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pgrepl.errors import InputError

DEFAULT_PUBLICATION = "pgsense_pub"
OPERATIONS = ("insert", "update", "delete", "truncate")
PARTS = ("check", "role", "publication")

Part = Literal["check", "role", "publication"]

# NAMEDATALEN - 1: the server cuts a longer name off with no more than a notice, and then it is another name.
_NAME_BYTES = 63


@dataclass(frozen=True)
class Wanted:
    """The publication, the role that is to read it, and what goes into the publication.

    At most one of ``tables`` (pairs of schema and name), ``schemas``, ``all_tables`` and ``literally_all`` is given;
    with none of them the publication must be there already and keeps its tables. ``publish`` and ``via_root`` are None
    where nothing was said: then an existing publication keeps what it has. ``only`` does one part alone; the checks
    come first in any case.

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


def _check_name(name: str, what: str) -> None:
    if not name or "\0" in name:
        raise InputError(f"{name!r} cannot be the name of a {what}")
    if len(name.encode()) > _NAME_BYTES:
        raise InputError(f"the name of the {what} {name!r} is longer than {_NAME_BYTES} bytes")
