"""``python -m pgrepl``."""

from pgrepl.cli.main import main

main()
