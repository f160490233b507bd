"""Copies that take as long as a test wants, although their tables are small."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from tests.fault.workload import wait

ROWS = 60
SCHEMA = f"""
CREATE TABLE slow (id int, slow bool, note text, PRIMARY KEY (id, slow));
INSERT INTO slow SELECT i, true, 'before' FROM generate_series(1, {ROWS}) i;
CREATE PUBLICATION slowly FOR TABLE slow
 WHERE (CASE WHEN slow THEN md5(repeat('x', 20000000 + id)) <> '' ELSE true END);
"""
"""A row filter that costs many milliseconds for each row with ``slow``, and nothing for another one."""

_BACKEND = """
SELECT a.pid FROM pg_stat_progress_copy p JOIN pg_stat_activity a USING (pid)
 WHERE p.relid = 0 AND a.query LIKE '%slow%' AND p.datname = current_database()
"""


def copying_backend(connection: psycopg.Connection) -> int:
    """Wait for the backend that copies the slow table."""
    wait(lambda: connection.execute(_BACKEND).fetchone() is not None, "the copy of the slow table")
    row = connection.execute(_BACKEND).fetchone()
    assert row is not None, "the copy was over too soon"
    pid: int = row[0]
    return pid


def none_left(connection: psycopg.Connection) -> None:
    """Wait until no backend copies the slow table any more: one of a run that has ended goes on to its next row."""
    wait(lambda: connection.execute(_BACKEND).fetchone() is None, "the end of the copy")


@contextmanager
def halted(connection: psycopg.Connection) -> Iterator[None]:
    """Let the copy of the slow table stand still."""
    pid = copying_backend(connection)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
