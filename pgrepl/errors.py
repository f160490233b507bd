"""Everything that pgrepl raises on purpose.

::

    PgreplError
     +-- OperationError        the operation failed, or the server is not fit for it        (exit code 1)
     |    +-- ProtocolError    the server sent bytes that the protocol does not allow
     |    +-- OutputError      a file could not be written or read; the same may work later
     |         +-- SyncError   what was written since the last sync may not be on the disk
     +-- InputError            an option, a file or a connection string is wrong            (exit code 2)
     +-- ConnectError          no connection: unreachable, authentication, TLS, database    (exit code 3)
     +-- TimeLimitError        the time limit of the command ran out                        (exit code 4)
     +-- PositionError         slot lost, gap, or another server: a person must decide      (exit code 5)

A message is lower case, without a full stop, and says what failed and on what; ``hint`` says what to do. Neither ever
holds a password. The exit codes themselves live in ``pgrepl.cli.diagnostics``.
"""

from __future__ import annotations


class PgreplError(Exception):
    """The root of all errors of pgrepl.

    ``hint`` is one line for the person at the terminal, ``sqlstate`` the five characters of the server's error, if it
    was one.
    """

    def __init__(self, message: str, *, hint: str | None = None, sqlstate: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint
        self.sqlstate = sqlstate


class OperationError(PgreplError):
    """The operation failed, or the server is not fit for it."""


class ProtocolError(OperationError):
    """The server sent bytes that the replication protocol does not allow."""


class OutputError(OperationError):
    """A file of ours could not be written or read: a full disk, or one that fails; the same may be tried again."""


class SyncError(OutputError):
    """A sync failed: what was written since the last good one may be gone, and no later sync would say so."""


class InputError(PgreplError):
    """An option, a file, an identifier or a connection string is wrong; nothing was changed."""


class ConnectError(PgreplError):
    """No connection could be made: unreachable, unknown database, authentication or TLS."""


class TimeLimitError(PgreplError):
    """The time limit of the command ran out."""


class PositionError(PgreplError):
    """The slot is lost, there is a gap, or the server is another one: going on would lose changes."""
