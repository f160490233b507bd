"""The configuration: a file of pgrepl's own or of pgsense-rs, and the environment above it.

``keys`` says what may be configured, ``source`` reads the file and the environment and knows where each value stands,
``settings`` checks the values and makes databases of them, ``edit`` changes one value in the file.
"""

from pgrepl.config.keys import Store
from pgrepl.config.settings import Config, Database, Pipeline, Setting, load
from pgrepl.config.source import find, places

__all__ = ["Config", "Database", "Pipeline", "Setting", "Store", "find", "load", "places"]
