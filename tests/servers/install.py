"""Install PostgreSQL 15 and 17 for the tests into ``.servers/`` of the checkout; run it as a script."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
TARGET = HERE.parents[1] / ".servers"


def main() -> None:
    """Install with npm what the lock file pins, and make the symbolic links which a npm package cannot hold."""
    TARGET.mkdir(exist_ok=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(HERE / name, TARGET)
    # npm may be told not to run the packages' scripts, so the one thing they do is done here.
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    subprocess.run(command, cwd=TARGET, stdin=subprocess.DEVNULL, check=True)
    for package in sorted(TARGET.glob("node_modules/postgresql-*")):
        for link in json.loads((package / "native" / "pg-symlinks.json").read_text(encoding="utf-8")):
            path = package / link["target"]
            path.unlink(missing_ok=True)
            path.symlink_to((package / link["source"]).name)
        answer = subprocess.run(
            [package / "native/bin/postgres", "--version"], check=True, capture_output=True, text=True
        )
        print(answer.stdout.strip())


if __name__ == "__main__":
    main()
