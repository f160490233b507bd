"""Who a server runs as: PostgreSQL refuses to run as root, so root runs it as an account without any rights."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pgrepl.errors import OperationError

_UNPRIVILEGED = ("postgres", "nobody")


@dataclass(frozen=True)
class Account:
    """An account of the operating system."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True)
class Outcome:
    """How a program ended, and what it wrote to stdout and stderr."""

    code: int
    said: str


def server_account() -> Account | None:
    """Choose the account of a server: None means ourselves; for root it is postgres, else nobody. None is ever made.

    Raises OperationError when root finds neither.
    """
    if os.geteuid() != 0:
        return None
    for name in _UNPRIVILEGED:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid != 0:
            return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)
    raise OperationError(
        "a PostgreSQL server cannot run as root, and there is no account to run it as",
        hint=f"run this as an ordinary user, or make one of the users {' and '.join(_UNPRIVILEGED)}",
    )


def run_as(account: Account | None, command: list[str | Path], *, timeout: float = 120) -> Outcome:
    """Run a program as an account and return what it said; its environment holds nothing of ours but the search path.

    Raises PermissionError when the account may not run it, OperationError when it does not end in ``timeout`` seconds.
    """
    # A session of its own, and waited for even when we are interrupted: a pg_ctl killed half-way leaves a server behind
    # that nobody knows of.
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        cwd="/",
        env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
        umask=0o077,
        start_new_session=True,
        user=account.uid if account else None,
        group=account.gid if account else None,
        extra_groups=[] if account else None,
    ) as process:
        try:
            said, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise OperationError(f"{Path(command[0]).name} has not ended after {timeout:g} s") from None
    return Outcome(process.returncode, said.strip())


def can_reach(account: Account | None, path: Path) -> bool:
    """Tell whether an account may enter a directory that exists, all its parents included."""
    return path.is_dir() and run_as(account, ["test", "-x", path]).code == 0


def make_directory(path: Path, account: Account | None) -> None:
    """Make one directory for an account alone (mode 0700), in a directory of ours. Raises OSError."""
    path.mkdir(mode=0o700)
    if account is not None:
        os.chown(path, account.uid, account.gid)


def temporary_directory(prefix: str, account: Account | None) -> Path:
    """Make an empty directory that only we write and the account can enter; the caller removes it.

    Raises OperationError when the account can enter no directory for temporary files.
    """
    for parent in dict.fromkeys((tempfile.gettempdir(), "/tmp", "/var/tmp")):  # noqa: S108  made by mkdtemp
        if can_reach(account, Path(parent)) and os.access(parent, os.W_OK):
            path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
            if account is not None:
                path.chmod(0o755)
            return path
    raise OperationError(
        f"the user {account.name if account else os.geteuid()} can enter no directory for temporary files",
        hint="set TMPDIR to a directory which that user can enter",
    )


def remove_directory(path: Path) -> None:
    """Remove a directory with everything in it; one that is not there is fine."""
    shutil.rmtree(path, ignore_errors=True)
