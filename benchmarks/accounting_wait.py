"""How long threads wait for the energy monitor: begin, end and energy of a request, a batch of steps.

    python benchmarks/accounting_wait.py [--running 1024] [--seconds 20] [--step-seconds 0.05] [--groups 1]

An engine of `running` requests that come and go is played in real time against a monitor with its own
threads (sampling, settling, fitting), metered by a model. One thread brings the step records in batches, as
the receiver does; another does what the event loop does for requests, a call every millisecond. Printed are
the calls' durations, waiting for the interpreter included: `control`, beside them, takes no lock.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from wattmeter.meters.modelled import ModelledMeter
from wattmeter.monitor.energy_monitor import EnergyMonitor
from wattmeter.steps.batch import StepBatch

IDLE_WATTS = 125.0
BUSY_WATTS = 600.0
PROMPT_TOKENS = 300
FLUSH_SECONDS = 0.05
CALL_SECONDS = 0.001


class Engine:
    """Requests that come and go, always `running` of them, in steps of one length."""

    def __init__(self, monitor: EnergyMonitor, *, running: int, mean_tokens: float, groups: int) -> None:
        self.monitor = monitor
        self.names = [f"cmpl-request-{number}" for number in range(running)]
        self.left = np.array([random.randrange(1, round(2 * mean_tokens)) for _ in range(running)])
        self.context = np.full(running, PROMPT_TOKENS)
        self.new = np.ones(running, dtype=bool)
        self.groups = groups
        self.count = itertools.count(running)
        self.index = 0
        self.born: deque[str] = deque(self.names)
        self.died: deque[str] = deque()

    def step(self, launch_ns: int, end_ns: int) -> StepBatch:
        running = len(self.names)
        zeros = np.zeros(running, np.int32)
        batch = StepBatch(
            index=np.array([self.index], np.int64),
            launch_ns=np.array([launch_ns], np.int64),
            end_ns=np.array([end_ns], np.int64),
            step=zeros,
            request=np.arange(running, dtype=np.int32),
            prefill_tokens=np.where(self.new, PROMPT_TOKENS, 0).astype(np.int32),
            decode_tokens=np.where(self.new, 0, 1).astype(np.int32),
            context_tokens=np.where(self.new, 0, self.context).astype(np.int32),
            cached_tokens=zeros,
            draft_tokens=zeros,
            accepted_tokens=zeros,
            request_ids=tuple(self.names),
        )
        self.index += 1
        self.context = np.where(self.new, PROMPT_TOKENS + 1, self.context + 1)
        self.left -= 1
        self.new = self.left <= 0
        for row in np.flatnonzero(self.new):
            self.died.append(self.names[row])
            self.names[row] = f"cmpl-request-{next(self.count)}"
            self.born.append(self.names[row])
            self.left[row] = random.randrange(1, 400)
        return batch


Durations = dict[str, list[float]]


def timed(durations: Durations, name: str, call: Callable[[], object]) -> None:
    begin = time.perf_counter()
    call()
    durations[name].append(time.perf_counter() - begin)


def play(running: int, seconds: float, step_seconds: float, groups: int) -> Durations:
    begin_ns = time.monotonic_ns()

    def joules_at(now_ns: int) -> float:
        return BUSY_WATTS * (now_ns - begin_ns) * 1e-9

    monitor = EnergyMonitor(ModelledMeter(joules_at), model="benchmark", idle_watts=IDLE_WATTS)
    engine = Engine(monitor, running=running, mean_tokens=200.0, groups=groups)
    durations: Durations = defaultdict(list)
    stop = threading.Event()

    def bring_steps() -> None:
        launch_ns = time.monotonic_ns()
        while not stop.is_set():
            end_ns = launch_ns + round(step_seconds * 1e9)
            time.sleep(max(0.0, (end_ns - time.monotonic_ns()) * 1e-9))
            batch = engine.step(launch_ns, end_ns)
            timed(durations, "add_steps", lambda batch=batch: monitor.add_steps(batch))  # type: ignore[misc]
            launch_ns = end_ns

    def serve_requests() -> None:
        number = 0
        while not stop.is_set():
            time.sleep(CALL_SECONDS)
            timed(durations, "control", lambda: sum(range(500)))
            if engine.born:
                name, number = engine.born.popleft(), number + 1
                group = f"tenant-{number % groups}"
                timed(durations, "request_started", lambda: monitor.request_started(name, group=group))  # noqa: B023
            elif engine.died:
                name = engine.died.popleft()
                timed(durations, "request_energy", lambda: monitor.request_energy(name))  # noqa: B023
                timed(
                    durations,
                    "request_finished",
                    lambda: monitor.request_finished(name, output_tokens=200, prompt_tokens=PROMPT_TOKENS),  # noqa: B023
                )
            else:
                name = random.choice(engine.names)
                timed(durations, "request_energy", lambda: monitor.request_energy(name))  # noqa: B023

    settle = monitor.settle

    def timed_settle(**options: bool) -> None:
        timed(durations, "settle", lambda: settle(**options))

    monitor.settle = timed_settle  # type: ignore[method-assign]
    monitor.start()
    threads = [threading.Thread(target=target) for target in (bring_steps, serve_requests)]
    for thread in threads:
        thread.start()
    time.sleep(seconds)
    error = monitor.snapshot().conservation_error_ratio
    stop.set()
    for thread in threads:
        thread.join()
    monitor.stop()
    if error > 1e-9:
        raise SystemExit(f"the joules do not add up: {error}")
    return durations


def figures(values: list[float]) -> dict[str, float]:
    data: npt.NDArray[np.float64] = np.array(values) * 1e3
    return {
        "calls": len(data),
        "median_ms": round(float(np.median(data)), 4),
        "p99_ms": round(float(np.percentile(data, 99)), 3),
        "p999_ms": round(float(np.percentile(data, 99.9)), 3),
        "worst_ms": round(float(data.max()), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--running", type=int, default=1024)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--step-seconds", type=float, default=0.05)
    parser.add_argument("--groups", type=int, default=1)
    options = parser.parse_args()
    durations = play(options.running, options.seconds, options.step_seconds, options.groups)
    for name, values in sorted(durations.items()):
        print(json.dumps({"call": name, **figures(values)}))


if __name__ == "__main__":
    main()
