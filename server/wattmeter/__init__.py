"""Where joules come from and whom they belong to: meters, joule counters, the ledger and attribution.

No HTTP server, no inference engine and no load generator in here: those import this package, never the
reverse.
"""

__version__ = "0.1.0"
