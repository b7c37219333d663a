"""The load tester: traces, arrivals, open-loop dispatch on Locust, measurement of a run's energy, report."""

import os

__version__ = "0.1.0"

# Arrow's own allocator keeps 16 MB more resident in a process that sends load than the system's does, and
# reads and writes no faster here. It is chosen when Arrow is first imported, so before that.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
