"""What a load is asked to send, what became of it, and what every load can do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from gevent.event import Event

from wattload.client.endpoint import Endpoint, EndpointOptions, RequestOptions
from wattload.client.record import RequestRecord
from wattload.load.metrics import LoadMetrics
from wattload.load.options import LoadOptions
from wattload.load.progress import Progress
from wattload.load.totals import LogHistogram, Totals
from wattload.rundir.directory import RunDir
from wattload.schedule.options import PromptOptions
from wattload.schedule.table import Schedule

# A request that leaves later than this waits for the client and not for the server.
SATURATION_SECONDS = 0.02
_LATE_REQUESTS = 5


@dataclass(slots=True)
class LoadPlan:
    """What is to be sent, and who is told of it.

    `watts` is asked for the progress display; `energy_in_responses`: whether the run's energy is the one that
    responses carry, so that the display may show theirs. A worker process is told `endpoint_options`, from
    which it makes `endpoint` with an API key of its own. `on_start` is called with the UNIX time of second 0
    of the schedule.
    """

    schedule: Schedule
    endpoint: Endpoint
    endpoint_options: EndpointOptions
    requests: RequestOptions
    prompts: PromptOptions
    load: LoadOptions
    run: RunDir
    run_id: str
    progress: Progress
    metrics: LoadMetrics
    warmup_seconds: float = 0.0
    watts: Callable[[], float | None] = lambda: None
    energy_source: str | None = None
    energy_in_responses: bool = True
    on_start: Callable[[float], None] = lambda started_unix: None


@dataclass(slots=True)
class LoadResult:
    """What became of a load. `reasons`: why its figures must not be trusted, empty where they may."""

    started_unix: float
    finished_unix: float
    planned: int
    totals: Totals
    lag: LogHistogram = field(default_factory=LogHistogram)
    interrupted: str | None = None
    reasons: list[str] = field(default_factory=list)
    workers: list[dict[str, Any]] = field(default_factory=list)
    ended_early_seconds: float | None = None

    def judge_client(self, processes: int) -> None:
        """Adds a reason where the client was late, so that it measured itself, or could not open connections.

        Each reason says what to do about it; `processes` is how many sent the load.
        """
        more = f"--processes {max(2, processes * 2)}"
        if self.totals.out_of_descriptors:
            self.reasons.append(
                f"client out of file descriptors: {self.totals.out_of_descriptors} requests could not be"
                f" sent; raise `ulimit -n` or use {more}"
            )
        lag = self.lag.quantile(0.99)
        # A few late requests among few are a hiccup of the system, not a client at its limit.
        if (
            lag is not None
            and lag > SATURATION_SECONDS
            and self.lag.above(SATURATION_SECONDS) >= _LATE_REQUESTS
        ):
            self.reasons.append(f"client saturated: lag p99 {lag * 1e3:.0f} ms; use {more}")


class Load(Protocol):
    """A load that can be followed, whichever processes send it. `over` is set when nothing is sent any more
    and every row is in.
    """

    result: LoadResult
    over: Event

    def start(self) -> None:
        """Begins to send. Raises RunInvalid where it cannot."""

    def counts(self) -> tuple[int, int]:
        """Requests due so far, and requests in flight."""

    def end_now(self) -> float:
        """Sends no more, but waits for responses; returns the end, in seconds from the start."""

    def stop(self, why: str) -> None:
        """Ends the load: requests in flight are aborted, the others stay unsent."""

    def close(self) -> LoadResult:
        """The result of a load that is over. Raises what went wrong while it was sent."""


def request_id(run_id: str, index: int) -> str:
    """The id that a request is sent with and found by: its run and its place in the schedule."""
    return f"{run_id}-{index}"


def planned_record(
    schedule: Schedule, row: int, run_id: str, *, worker: int = 0, error: str | None = None
) -> RequestRecord:
    """The record of a planned request that is not sent yet; its due time is still to be set."""
    index = int(schedule.index[row])
    return RequestRecord(
        index=index,
        request_id=request_id(run_id, index),
        session=int(schedule.session[row]),
        agent=int(schedule.agent[row]),
        task=int(schedule.task[row]),
        tag=schedule.tags[int(schedule.tag[row])],
        due_unix=0.0,
        prompt_tokens_planned=int(schedule.prompt_tokens[row]) + schedule.frame.system_tokens,
        output_tokens_planned=int(schedule.output_tokens[row]),
        error=error,
        worker=worker,
        inputs=schedule.frame.inputs_of(int(schedule.prompt_tokens[row])),
        model="" if schedule.model is None else schedule.models[int(schedule.model[row])],
        images_planned=schedule.images_planned(row),
    )
