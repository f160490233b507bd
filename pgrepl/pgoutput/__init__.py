"""Bytes of logical replication to messages, rows and types; no I/O anywhere in this room.

``walsender`` takes a CopyData payload apart, ``decoder`` turns what is inside into a message of ``messages``,
``copytext`` splits the rows of an initial copy, and ``types`` says what the text of a column means.
"""
