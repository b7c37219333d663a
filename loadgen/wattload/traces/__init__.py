"""Traces: what was asked of a real service, and when. `load` gives the embedded ones by name, files by
path.
"""

from wattload.traces.loading import load
from wattload.traces.options import ReadOptions, parse_column_map
from wattload.traces.trace import PrefixBlocks, Trace

__all__ = ["PrefixBlocks", "ReadOptions", "Trace", "load", "parse_column_map"]
