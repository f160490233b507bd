"""Real output held to the JSON schemas of the package."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker  # type: ignore[import-untyped]
from jsonschema.exceptions import best_match  # type: ignore[import-untyped]

from pgrepl import schemas


@functools.cache
def validator(command: str) -> Any:
    """Return the validator of a command's schema; raises FileNotFoundError where there is none."""
    schema = schemas.read(command)
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema, format_checker=FormatChecker())


_LINES = ("tail", "slots peek")
"""Commands that print an event a line, whatever is asked for."""


def check(command: str, document: Any) -> None:
    """Fail unless a document is what the schema of a command allows."""
    error = best_match(validator(command).iter_errors(document))
    assert error is None, (
        f"pgrepl {command} prints what is not in pgrepl/schemas: {error.message}\nat {error.json_path}"
    )


def parse(command: str, output: str, *, lines: bool = False) -> Any:
    """Parse what a command printed, and hold it to its schema.

    With ``lines`` it is one document a line: for tail each an event, else the elements of a list, or one object.
    """
    documents = [json.loads(line) for line in output.splitlines()] if lines else [json.loads(output)]
    if lines and command not in _LINES and schemas.read(command).get("type") == "array":
        documents = [documents]
    for document in documents:
        check(command, document)
    return documents if command in _LINES else documents[0]


def check_call(arguments: Sequence[str], output: str) -> None:
    """Hold the output of one call to the schema of its command, if it printed JSON that has one.

    With --all-databases it is an array of such documents, with null where there is none.
    """
    command = next((name for name in _prefixes(arguments) if name in schemas.names()), None)
    form = _format(arguments)
    if command is None or not output or form not in ("json", "jsonl"):
        return
    if "--all-databases" in arguments and form == "json":
        for document in json.loads(output):
            if document is not None:
                check(command, document)
    else:
        parse(command, output, lines=form == "jsonl" or command in _LINES)


def _prefixes(arguments: Sequence[str]) -> Iterator[str]:
    for length in range(len(arguments), 0, -1):
        yield " ".join(arguments[:length])


def _format(arguments: Sequence[str]) -> str | None:
    if "--json" in arguments:
        return "json"
    joined = next((each for each in arguments if each.startswith("--format=")), None)
    if joined is not None:
        return joined.partition("=")[2]
    return arguments[arguments.index("--format") + 1] if "--format" in arguments[:-1] else None
