"""mintage: published methods about tokens behind ten small contracts, every claim re-measured beside its baseline.

Start with ``mintage methods`` on the command line, or `mintage.catalog.methods` from Python. Each job is a
subpackage (`mintage.draft`, `mintage.keep`, ...); nothing heavy is imported until it is used.
"""

from importlib.metadata import version

__version__ = version("mintage")
