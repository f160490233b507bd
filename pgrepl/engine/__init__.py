"""Snapshot, then stream: messages of the walsender to events, and everything that decides when a position is done."""
