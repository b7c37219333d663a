"""How far the server's own books are off where the mix of tenants changes: its rule over the kept recording.

    python benchmarks/h200/steady_mix.py FOLDER

The books as a server keeps them (readings, step records and requests come in as time passes; every 250 ms
what is known by then is settled), over the experiments as they were: another subset of the tenants is served
every 18 s. One step model throughout, fitted on the other experiments. Prints, in Markdown, the error of each
joint run's division against the measured Shapley value, and how long a second waited at most for its own.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from analyse import TENANTS, intervals, load
from evaluate import Evaluation, Window, fit_intervals, measured_shapley
from wattmeter.devicebook import DeviceBook
from wattmeter.idle import IdleTracker
from wattmeter.meter import Device, Reading
from wattmeter.recording import read
from wattmeter.requests import RequestBook
from wattmeter.settlement import Settlement
from wattmeter.stepmodel import StepEnergyModel
from wattmeter.stepqueue import StepQueue, take_steps
from wattmeter.windows import window_energy

TICK_NS = 250_000_000
RECORD_DELAY_NS = 300_000_000


@dataclass
class Books:
    """The parts that a server's account joins, in the recording's time."""

    data: Evaluation
    model: StepEnergyModel
    now_ns: int = 0
    longest_wait_seconds: float = 0.0

    def __post_init__(self) -> None:
        device = Device("gpu", "recorded", "nvml")
        self.device = DeviceBook(device, history_seconds=1e6, update_period_seconds=0.1)
        self.idle = IdleTracker(self.data.idle_watts)
        self.queue = StepQueue()
        self.requests = RequestBook("nvml", now_ns=lambda: self.now_ns)
        self.settlement = Settlement(
            {"gpu": self.device.ledger}, self.requests, self.queue, self.idle, history_seconds=1e6
        )

    def run(self, start_seconds: float, end_seconds: float) -> None:
        steps, counter = self.data.recording.steps, self.data.counter
        last = np.zeros(len(steps.request_ids), dtype=np.int64)
        np.maximum.at(last, steps.request, steps.end_ns[steps.step])
        events = [(round(when * 1e9), True, name) for name, when in self.data.arrivals.items()]
        events += [
            (int(end), False, name)
            for name, end in zip(steps.request_ids, last, strict=True)
            if name in self.data.arrivals
        ]
        events.sort()
        begin_ns, event = round(start_seconds * 1e9), 0
        row = np.searchsorted(steps.end_ns, begin_ns)
        reading = np.searchsorted(counter.monotonic_ns, begin_ns)
        for tick in range(begin_ns, round(end_seconds * 1e9), TICK_NS):
            while event < len(events) and events[event][0] <= tick:
                self.now_ns, starts, name = events[event]
                if starts:
                    self.requests.start(name, None, self.data.group_of.get(name, ""))
                else:
                    self.requests.finish(name, None, None, False)
                event += 1
            stop = np.searchsorted(counter.monotonic_ns, tick, side="right")
            for number in range(int(reading), int(stop)):
                when, joules = int(counter.monotonic_ns[number]), float(counter.energy_joules[number])
                self.device.add_energy(Reading("gpu", when, when * 1e-9, energy_joules=joules))
            ended = np.searchsorted(steps.end_ns, tick, side="right")
            self.queue.add(take_steps(steps, int(row), int(ended)))
            row, reading = ended, stop
            self.now_ns = tick
            self.settle()

    def settle(self) -> None:
        covered = self.device.ledger.covered_to_ns
        if covered is None:
            return
        until = min(covered, self.now_ns - RECORD_DELAY_NS)
        if self.requests.active and self.queue.last_end_ns is not None:
            until = min(until, self.queue.last_end_ns)
        while True:
            new = self.settlement.settle(until, self.model, self.now_ns * 1e-9)
            for piece in new:
                wait = (self.now_ns - piece.start_ns) * 1e-9
                self.longest_wait_seconds = max(self.longest_wait_seconds, wait)
            if self.settlement.due is None:
                return
            self.settlement.divide(self.settlement.due, self.settlement.due.factors(self.model))

    def errors(self, window: Window, value: np.ndarray) -> list[str]:
        """Each tenant's joules in a window against `value`, as `GET /energy?group_by=tag` would give them."""
        answer = window_energy(
            window.start_seconds,
            window.end_seconds,
            start_ns=round(window.start_seconds * 1e9),
            end_ns=round(window.end_seconds * 1e9),
            books={"gpu": self.device},
            settlement=self.settlement,
            idle=self.idle,
            account_flags=frozenset(),
        )
        if not answer.complete:
            raise SystemExit(f"{window.name}: not settled, {sorted(answer.flags)}")
        sums = np.array([answer.groups.get(tenant, 0.0) for tenant in TENANTS])
        return [f"{error:+.1f} %" for error in 100 * (sums / value - 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    recording = read(options.folder / "recording")
    experiments = [load(file, [recording]) for file in sorted(options.folder.glob("*.json.gz"))]
    print("| joint run | " + " | ".join(TENANTS) + " | longest wait |\n|---|---|---|---|---|")
    for experiment in experiments:
        if not experiment.name.startswith("coalitions"):
            continue
        data = experiment.data
        value, _ = measured_shapley(data, TENANTS)
        model = fit_intervals(intervals([e for e in experiments if e is not experiment]))
        books = Books(data, model)
        books.run(data.windows[0].start_seconds - 5.0, data.windows[-1].end_seconds + 5.0)
        for window in (w for w in data.windows if len(w.tenants) == len(TENANTS)):
            cells = [*books.errors(window, value), f"{books.longest_wait_seconds:.1f} s"]
            print(f"| {window.name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
