"""Measure and print: ``python -m bench [--runs N] [--json]``, or ``./dev bench``.

Each row is a whole process, run in turn with its peer, and the median of the runs. docs/benchmarks.md holds the latest
table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import psycopg

from pgrepl.sandbox import Sandbox, account

TABLES = 1000


def main() -> None:
    """Build the data, run each row and its peer in turn, print the medians."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="runs of each command after a warm-up")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    directory = account.temporary_directory("pgrepl-bench-", account.server_account())
    sandbox = Sandbox(directory / "sandbox", durable=False)
    try:
        status = sandbox.start()
        assert status.dsn is not None
        rows = measure(status.dsn, options.runs)
    finally:
        sandbox.destroy()
        account.remove_directory(directory)
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}, PostgreSQL {status.version}"
    if options.json:
        print(json.dumps({"machine": machine, "runs": options.runs, "rows": rows}, indent=2))
        return
    print(machine)
    for row in rows:
        ratio = f", {row['seconds'] / row['peer_seconds']:.1f} times {row['peer']}" if row["peer"] else ""
        print(f"{row['id']}  {row['work']:<50} {row['seconds']:.2f} s{ratio} (to reach: {row['reach']} s)")


def measure(dsn: str, runs: int) -> list[dict[str, Any]]:
    """Time every row."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            f"DO $$ BEGIN FOR i IN 1..{TABLES} LOOP EXECUTE format('CREATE TABLE t%s (id int PRIMARY KEY, a text)', i);"
            " END LOOP; END $$"
        )
        connection.execute("CREATE PUBLICATION bench FOR ALL TABLES")
    pgrepl = [sys.executable, "-m", "pgrepl"]
    query = [sys.executable, "-c", f"import psycopg; psycopg.connect({dsn!r}).execute('select 1')"]
    return [
        _row(
            "D1", f"doctor on a database with {TABLES:,} published tables", [*pgrepl, "doctor", "bench"], dsn, 1.5, runs
        ),
        _row("U1", "pgrepl --help", [*pgrepl, "--help"], dsn, 0.15, runs),
        _row("U1", "pgrepl slots list", [*pgrepl, "slots", "list"], dsn, 0.45, runs, peer=("psycopg alone", query)),
    ]


def _row(
    name: str,
    work: str,
    command: Sequence[str],
    dsn: str,
    reach: float,
    runs: int,
    *,
    peer: tuple[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    mine, theirs = [], []
    for number in range(runs + 1):
        taken = _seconds(command, dsn)
        peer_taken = _seconds(peer[1], dsn) if peer else 0.0
        if number:
            mine.append(taken)
            theirs.append(peer_taken)
    return {
        "id": name,
        "work": work,
        "seconds": statistics.median(mine),
        "peer": peer[0] if peer else None,
        "peer_seconds": statistics.median(theirs) if peer else None,
        "reach": reach,
    }


def _seconds(command: Sequence[str], dsn: str) -> float:
    begun = time.monotonic()
    done = subprocess.run(
        command, env={**os.environ, "PGREPL_DSN": dsn}, stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    taken = time.monotonic() - begun
    # doctor has findings on this server; anything else is a failed run.
    assert done.returncode in (0, 1), done.stderr.decode()
    return taken


if __name__ == "__main__":
    main()
