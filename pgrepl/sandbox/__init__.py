"""An embedded PostgreSQL to try things on: made, started and thrown away without anything else being installed."""

from pgrepl.sandbox.cluster import Cluster, Postmaster
from pgrepl.sandbox.instance import Sandbox, Status

__all__ = ["Cluster", "Postmaster", "Sandbox", "Status"]
