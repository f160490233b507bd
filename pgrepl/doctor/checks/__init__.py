"""All checks, in the order in which they run and are printed."""

from __future__ import annotations

from pgrepl.doctor.check import Check
from pgrepl.doctor.checks import connection, publication, role, server, settings, table

CHECKS: tuple[Check, ...] = (
    connection.Sql(),
    connection.Replication(),
    server.Version(),
    settings.WalLevel(),
    settings.SlotsFree(),
    settings.SendersFree(),
    role.Replication(),
    role.Select(),
    publication.Exists(),
    publication.Nonempty(),
    table.ReplicaIdentity(),
)
