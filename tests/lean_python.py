"""Make a Python installation that lacks something, as some systems ship it.

``python3 tests/lean_python.py DIRECTORY`` makes one with pip and without ensurepip, whose ``venv`` therefore fails.
"""

from __future__ import annotations

import shutil
import sys
import sysconfig
import zipfile
from collections.abc import Iterable
from pathlib import Path


def install(directory: Path, *, without: Iterable[str] = (), pip: bool = False) -> None:
    """Make ``directory/bin/python3.N`` of our own version, without some modules of its library and with pip or not."""
    library = Path(sysconfig.get_path("stdlib"))
    home = directory / "lib" / library.name
    (home / "site-packages").mkdir(parents=True)
    for entry in library.iterdir():
        if entry.name not in {"site-packages", "dist-packages", *without}:
            (home / entry.name).symlink_to(entry)
    if pip:
        with zipfile.ZipFile(next(library.glob("ensurepip/_bundled/pip-*.whl"))) as wheel:
            wheel.extractall(home / "site-packages")
    (directory / "bin").mkdir()
    # Python finds its library beside its own program, so that has to be a file, not a link.
    program = directory / "bin" / f"python3.{sys.version_info.minor}"
    shutil.copy(Path(sys.executable).resolve(), program)


if __name__ == "__main__":
    install(Path(sys.argv[1]), without=["ensurepip"], pip=True)
