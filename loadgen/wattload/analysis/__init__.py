"""Numbers are computed here: windows, latency, energy, statistics, comparisons, assertions."""
