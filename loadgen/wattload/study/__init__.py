"""A study: arms compared over workloads, rates and repeats, one run directory per cell, and what follows."""
