"""``pgrepl slots``: which replication slots there are, how they fare, and what can be done with them."""

from __future__ import annotations

import click

from pgrepl.cli.diagnostics import epilog
from pgrepl.cli.options import Group
from pgrepl.cli.slots.create import create
from pgrepl.cli.slots.drop import drop
from pgrepl.cli.slots.lag import lag
from pgrepl.cli.slots.listing import list_
from pgrepl.cli.slots.peek import peek


@click.group(cls=Group, epilog=epilog("pgrepl slots list"))
def slots() -> None:
    """Show replication slots with a verdict on each, make, drop and look into them."""


for _command in (list_, lag, drop, create, peek):
    slots.add_command(_command)
