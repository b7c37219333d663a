"""Checks dashboards and rules: by reading them (units, ranges, variables) and by asking Prometheus."""
