"""Read-only questions to the server, their answers as frozen dataclasses; each question is one query, however many objects."""
