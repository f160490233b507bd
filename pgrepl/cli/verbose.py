"""What --verbose shows: the steps that the rooms below the command line log."""

from __future__ import annotations

import logging

import click

from pgrepl.cli.diagnostics import Reporter


def show_log(report: Reporter) -> None:
    """Let the reporter say everything that is logged until the command ends."""
    logger, handler = logging.getLogger("pgrepl"), _Handler(report)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    click.get_current_context().call_on_close(lambda: logger.removeHandler(handler))


class _Handler(logging.Handler):
    def __init__(self, report: Reporter) -> None:
        super().__init__()
        self._report = report

    def emit(self, record: logging.LogRecord) -> None:
        self._report.detail(record.getMessage())
