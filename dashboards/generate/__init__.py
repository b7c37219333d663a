"""Grafana dashboards and recording rules as typed Python: `python -m dashboards.generate` writes them."""
