"""pgrepl: set up, check, clean and tail PostgreSQL logical replication."""

__version__ = "0.1.0"
