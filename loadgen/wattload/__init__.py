"""The load tester: traces, arrivals, open-loop dispatch on Locust, measurement of a run's energy, report."""

__version__ = "0.1.0"
