"""Read-only questions to the server, answered as frozen dataclasses; each is one query, however many objects."""
