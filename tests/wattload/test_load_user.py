"""What Locust's statistics are told: every request, and errors in memory that does not grow with them."""

from __future__ import annotations

from collections import Counter

from locust.env import Environment
from locust.event import Events
from wattload.load_user import report_to_locust
from wattload.record import Outcome, RequestRecord


def failed(index: int, error: str) -> RequestRecord:
    record = RequestRecord(index, f"r-{index}", -1, "", 0.0, 1, 1, outcome=Outcome.HTTP_5XX, sent_unix=0.0)
    record.error = error
    return record


def test_errors_that_name_the_request_do_not_fill_the_memory() -> None:
    environment = Environment(events=Events())
    environment.create_local_runner()
    for index in range(1000):
        report_to_locust(environment, failed(index, f"500: request r-{index} failed"))
    errors = environment.stats.errors
    assert len(errors) == 101
    said = Counter(str(error.error) for error in errors.values())
    assert said["http_5xx: 500: request r-0 failed"] == 1
    assert said["http_5xx"] == 1
    assert sum(error.occurrences for error in errors.values()) == 1000
    assert environment.stats.entries["completion", "POST"].num_failures == 1000
    environment.runner.quit()
