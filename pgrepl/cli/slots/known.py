"""Which pipelines are known, as the configuration and the server tell it together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgrepl.names import pipeline_id

if TYPE_CHECKING:
    from pgrepl.cli.options import Run


def configured_pipelines(run: Run) -> list[int]:
    """Derive the ids of the pipelines of all configured databases. Raises InputError for a file that is not right."""
    return [pipeline_id(*entry.identity.split("/", 1)) for entry in run.config.databases]
