"""Checksums of a directory of migration files, as sqlx takes them."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from pgrepl.errors import InputError

_NAME = re.compile(r"(\d+)_.+\.sql", re.ASCII)


def checksums(directory: str | Path) -> dict[int, str]:
    """Take the SHA-384 of every file ``VERSION_description.sql``, in hexadecimal and by version.

    Raises InputError for a directory that cannot be read, has no such file, or has two of one version.
    """
    found: dict[int, str] = {}
    try:
        for path in sorted(Path(directory).iterdir()):
            match = _NAME.fullmatch(path.name)
            if match is None:
                continue
            version = int(match[1])
            if version in found:
                raise InputError(f"{directory} has two files of version {version}")
            found[version] = hashlib.sha384(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"cannot read migrations in {directory}: {error.strerror}") from None
    if not found:
        raise InputError(f"{directory} has no migrations", hint="their names are VERSION_description.sql")
    return found
