"""The same test for people who start Locust themselves.

locust -f loadgen/locustfile.py --host http://localhost:8000 --trace conv --rate 5 --duration 60s

With the web UI, `--headless`, `--processes N` or `--master`/`--worker`, as any locustfile. How many users
there are is not asked: the schedule makes the load.
"""

from wattload.locust_ui import ReplayShape, ReplayUser, install

install()

__all__ = ["ReplayShape", "ReplayUser"]
