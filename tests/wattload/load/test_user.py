"""What Locust's statistics are told: every request, and errors in memory that does not grow with them."""

from __future__ import annotations

import json
import subprocess
import sys

# In a process of its own: Locust patches the standard library when it is imported.
SCRIPT = """
import json
from locust.env import Environment
from locust.event import Events
from wattload.load.user import report_to_locust
from wattload.client.record import Outcome, RequestRecord

environment = Environment(events=Events())
environment.create_local_runner()
for index in range(1000):
    record = RequestRecord(index, f"r-{index}", -1, "", 0.0, 1, 1, outcome=Outcome.HTTP_5XX, sent_unix=0.0)
    record.error = f"500: request r-{index} failed"
    report_to_locust(environment, record)
stats = environment.stats
print(json.dumps({
    "errors": {str(error.error): error.occurrences for error in stats.errors.values()},
    "failures": stats.entries["completion", "POST"].num_failures,
}))
environment.runner.quit()
"""


def test_errors_that_name_the_request_do_not_fill_the_memory() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    assert told["failures"] == 1000
    assert len(told["errors"]) == 101
    assert told["errors"]["http_5xx: 500: request r-0 failed"] == 1
    assert told["errors"]["http_5xx"] == 900
