"""How far the server's division is off where the mix of tenants changes: its rule over the kept recording.

    python benchmarks/h200/steady_mix.py FOLDER

The division as a server makes it (readings, step records and requests come in as time passes; every 250 ms
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

from wattmeter.attribution.tenants import Arrival
from wattmeter.energy_model.step_model import StepModel
from wattmeter.metering.device import MeteredDevice
from wattmeter.metering.idle_power import IdleTracker
from wattmeter.meters.base import Device, Reading
from wattmeter.monitor.settler import Collected, Progress, Settler
from wattmeter.monitor.windows import DeviceView, History, WindowView, window_energy
from wattmeter.steps.recording import read

TICK_NS = 250_000_000


@dataclass
class Settling:
    """The parts that a server's monitor joins, in the recording's time."""

    data: Evaluation
    model: StepModel
    longest_wait_seconds: float = 0.0

    def __post_init__(self) -> None:
        device = Device("gpu", "recorded", "nvml")
        self.device = MeteredDevice(device, history_seconds=1e6, update_period_seconds=0.1)
        self.settler = Settler(IdleTracker(self.data.idle_watts))
        self.history = History(history_seconds=1e6)

    def run(self, start_seconds: float, end_seconds: float) -> None:
        steps, counter = self.data.recording.steps, self.data.counter
        last = np.zeros(len(steps.request_ids), dtype=np.int64)
        np.maximum.at(last, steps.request, steps.end_ns[steps.step])
        known = [
            (name, int(end))
            for name, end in zip(steps.request_ids, last, strict=True)
            if name in self.data.arrivals
        ]
        ends = sorted(end for _, end in known)
        starts = sorted((round(when * 1e9), name) for name, when in self.data.arrivals.items())
        begin_ns, started, ended = round(start_seconds * 1e9), 0, 0
        row = np.searchsorted(steps.end_ns, begin_ns)
        reading = np.searchsorted(counter.monotonic_ns, begin_ns)
        for tick in range(begin_ns, round(end_seconds * 1e9), TICK_NS):
            arrivals: dict[str, Arrival | None] = {}
            while started < len(starts) and starts[started][0] <= tick:
                started_ns, name = starts[started]
                arrivals[name] = Arrival(self.data.group_of.get(name, ""), started_ns)
                started += 1
            while ended < len(ends) and ends[ended] <= tick:
                ended += 1
            stop = np.searchsorted(counter.monotonic_ns, tick, side="right")
            for number in range(int(reading), int(stop)):
                when, joules = int(counter.monotonic_ns[number]), float(counter.energy_joules[number])
                self.device.take_energy(Reading("gpu", when, when * 1e-9, energy_joules=joules))
            done = np.searchsorted(steps.end_ns, tick, side="right")
            new = Collected(
                now_ns=tick,
                unix_seconds=tick * 1e-9,
                model=self.model,
                timelines={"gpu": self.device.timeline.view()},
                batches=[steps.slice(int(row), int(done)).renumber()],
                arrivals=arrivals,
                active=max(started - ended, 0),
            )
            row, reading = done, stop
            progress = Progress()
            self.settler.advance(new, progress)
            self.history.add(progress.seconds)
            waits = [(tick - second.start_ns) * 1e-9 for second in progress.seconds]
            self.longest_wait_seconds = max(self.longest_wait_seconds, *waits, 0.0)

    def errors(self, window: Window, value: np.ndarray) -> list[str]:
        """Each tenant's joules in a window against `value`, as `GET /energy?group_by=tag` would give them."""
        start_ns, end_ns = (round(edge * 1e9) for edge in (window.start_seconds, window.end_seconds))
        view = WindowView(
            start_ns,
            end_ns,
            devices=[DeviceView(self.device.device, self.device.timeline.view())],
            seconds=self.history.seconds(start_ns, end_ns),
            idle_watts=self.data.idle_watts,
            flags=frozenset(),
        )
        answer = window_energy(window.start_seconds, window.end_seconds, view)
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
        settling = Settling(data, model)
        settling.run(data.windows[0].start_seconds - 5.0, data.windows[-1].end_seconds + 5.0)
        for window in (w for w in data.windows if len(w.tenants) == len(TENANTS)):
            cells = [*settling.errors(window, value), f"{settling.longest_wait_seconds:.1f} s"]
            print(f"| {window.name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
