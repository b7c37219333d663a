"""Takes each request's record once: its row, the totals, the metrics, and Locust's statistics."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

from locust.env import Environment

from wattload.client.record import RequestRecord
from wattload.load.metrics import LoadMetrics
from wattload.load.totals import Totals
from wattload.load.user import report_to_locust
from wattload.rundir.directory import RequestWriter, RunDir, request_batch

_BATCH_ROWS = 64
# A batch that is not full is written when its first row is this old; the dispatcher looks twice a second.
_BATCH_SECONDS = 0.5
_ENDED = object()


class Recorder:
    """Records every request of a load that ended.

    `environment` None: Locust is told nothing here, as where its workers tell it. A row is on disk within a
    second. Where it cannot be written, `failure` says why in one sentence, `on_failure` gets that sentence
    once, and nothing more is written: what is on disk stays readable.
    """

    def __init__(
        self, run: RunDir, metrics: LoadMetrics, environment: Environment | None, *, keep_joules: bool
    ) -> None:
        """`keep_joules`: whether the totals keep the joules of every request, which the stop rule needs."""
        # The writer's own limit is a backstop: batches are written in steps, between two requests.
        self._writer = RequestWriter(run, batch_rows=_BATCH_ROWS * 40)
        self._writing: Iterator[None] | None = None
        self._oldest_perf = 0.0
        # Arrow's first conversion takes 10 ms (it looks for pandas): not while requests are due.
        request_batch([RequestRecord(0, "", -1, "", 0.0, 0, 0)])
        self._metrics, self._environment = metrics, environment
        self.totals = Totals(keep_joules=keep_joules)
        self.rows = 0
        self.failure: str | None = None
        self.on_failure: Callable[[str], None] = lambda sentence: None

    def __call__(self, record: RequestRecord) -> None:
        self.rows += 1
        self.totals.add(record)
        self._metrics.observe(record)
        if self._environment is not None:
            report_to_locust(self._environment, record)
        if self.failure is not None:
            return
        if not self._writer.pending:
            self._oldest_perf = time.perf_counter()
        try:
            self._writer.append((record,))
        except OSError as error:
            self._fail(error)

    def write_step(self) -> bool:
        """Writes a few columns of a batch that is full or old enough; False where there is none."""
        if self.failure is not None:
            return False
        try:
            if self._writing is None:
                if not self._batch_is_due():
                    return False
                self._writing = self._writer.flush_steps()
            if next(self._writing, _ENDED) is _ENDED:
                self._writing = None
        except OSError as error:
            self._fail(error)
            return False
        return True

    def _batch_is_due(self) -> bool:
        pending = self._writer.pending
        if pending >= _BATCH_ROWS:
            return True
        return pending > 0 and time.perf_counter() - self._oldest_perf >= _BATCH_SECONDS

    def _fail(self, error: OSError) -> None:
        self._writing = None
        why = os.strerror(error.errno) if error.errno else str(error)
        self.failure = f"{self._writer.path}: rows cannot be written: {why}"
        self._writer.abandon()
        self.on_failure(self.failure)

    def close(self) -> None:
        """Writes what is left and closes the file."""
        while self._writing is not None and self.failure is None:
            self.write_step()
        try:
            self._writer.close()
        except OSError as error:
            if self.failure is None:
                self._fail(error)
