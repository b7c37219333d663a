"""A server in a few lines: a clock the test moves, an engine making steps, a device using energy."""

from __future__ import annotations

import random
from collections.abc import Sequence

from meter_fakes import MS, SECOND, batch
from wattmeter.clock import Clocks
from wattmeter.energy_model.step_model import StepModel
from wattmeter.faults import Fault
from wattmeter.meters.base import Device, Reading
from wattmeter.monitor.energy_monitor import EnergyMonitor

MODEL = StepModel(
    fixed_joules=2.0,
    prefill_token_joules=0.01,
    decode_token_joules=0.02,
    context_token_joules=20e-6,
    fixed_seconds=0.005,
    prefill_token_seconds=8e-6,
)
TICK_NS = 20 * MS


class World:
    """Devices share the energy of `engine` steps equally; idle power is `idle_watts` each; `given_watts`
    is what the monitor is told of it.

    `above_idle` is the joules of all steps so far. `faults[device]` makes its counter fail; `resets[device]`
    is subtracted from it (a counter that began anew). While `starved` nobody reads the meter.
    """

    source = "modelled"
    min_energy_interval_seconds = 0.1
    update_period_seconds = 0.1

    def __init__(
        self,
        *,
        devices: int = 1,
        idle_watts: float = 100.0,
        given_watts: float | None = None,
        seed: int = 0,
        **options: object,
    ) -> None:
        self.now_ns = 1_000 * SECOND
        self.wall_offset = 1e9
        self.idle_watts = idle_watts
        self.chance = random.Random(seed)
        self.phases = [self.chance.randrange(100 * MS) for _ in range(devices)]
        self._devices = tuple(Device(f"gpu-{i}", "fake", self.source) for i in range(devices))
        self.faults: dict[str, Fault] = {}
        self.resets: dict[str, float] = {}
        self.work: list[tuple[int, int, float]] = []
        self.done = 0.0
        self.above_idle = 0.0
        self.step_index = 0
        self.energy_reads: list[int] = []
        self.starved = False
        clocks = Clocks(lambda: self.now_ns, lambda: self.now_ns * 1e-9 + self.wall_offset)
        self.monitor = EnergyMonitor(
            self,
            model="test",
            idle_watts=given_watts,
            clocks=clocks,
            **options,  # type: ignore[arg-type]
        )

    # --- the meter ------------------------------------------------------------------------------------------

    @property
    def devices(self) -> Sequence[Device]:
        return self._devices

    def exact(self, at_ns: int) -> float:
        """Joules of one device since the start of time."""
        busy = sum(
            joules * min(1.0, max(0.0, (at_ns - start) / (end - start))) for start, end, joules in self.work
        )
        return self.idle_watts * at_ns * 1e-9 + (self.done + busy) / len(self._devices)

    def read_energy(self, device_id: str) -> Reading:
        self.energy_reads.append(self.now_ns)
        if device_id in self.faults:
            return Reading(device_id, self.now_ns, self.unix, fault=self.faults[device_id])
        phase = self.phases[int(device_id.removeprefix("gpu-"))]
        shown = (self.now_ns - phase) // (100 * MS) * (100 * MS) + phase
        value = self.exact(shown) - self.resets.get(device_id, 0.0)
        return Reading(device_id, self.now_ns, self.unix, energy_joules=value)

    def read_power(self, device_id: str) -> Reading:
        watts = (self.exact(self.now_ns) - self.exact(self.now_ns - 100 * MS)) / 0.1
        return Reading(device_id, self.now_ns, self.unix, power_watts=watts)

    def close(self) -> None:
        return None

    # --- what the monitor says ------------------------------------------------------------------------------

    @property
    def settled_ns(self) -> int:
        """Up to when the monitor has settled, to 0.2 µs."""
        settled_unix = self.monitor.snapshot().settled_unix
        assert settled_unix is not None
        return round((settled_unix - self.wall_offset) * 1e9)

    # --- time and work --------------------------------------------------------------------------------------

    @property
    def unix(self) -> float:
        return self.now_ns * 1e-9 + self.wall_offset

    def pass_time(self, seconds: float) -> None:
        """Let time pass: the sampler reads when it wants to, the monitor settles every 250 ms."""
        end = self.now_ns + round(seconds * SECOND)
        next_settle = self.now_ns
        while self.now_ns < end:
            wake = self.now_ns + TICK_NS if self.starved else self.monitor.tick(self.now_ns)
            if self.now_ns >= next_settle:
                self.monitor.settle()
                next_settle = self.now_ns + 250 * MS
            self.now_ns = min(end, max(wake, self.now_ns + MS))

    def step(
        self, entries: Sequence[tuple[str, int, int, int]], *, seconds: float = 0.02, record: bool = True
    ) -> None:
        """One engine step of (request, prefill tokens, decode tokens, context) entries."""
        start, end = self.now_ns, self.now_ns + round(seconds * SECOND)
        joules = MODEL.fixed_joules + sum(
            MODEL.prefill_token_joules * p
            + MODEL.decode_token_joules * d
            + MODEL.context_token_joules * c * (d > 0)
            for _, p, d, c in entries
        )
        self._forget(start - 2 * SECOND)
        self.work.append((start, end, joules))
        self.above_idle += joules
        self.pass_time(seconds)
        if record:
            self.monitor.add_steps(batch([(start, end, entries)], first_index=self.step_index))
        self.step_index += 1

    def _forget(self, before_ns: int) -> None:
        """Add the energy of old steps to `done`: nobody asks about their time any more."""
        while self.work and self.work[0][1] < before_ns:
            self.done += self.work.pop(0)[2]

    def serve(
        self,
        requests: dict[str, tuple[int, int]],
        *,
        seconds: float = 0.02,
        groups: dict[str, str] | None = None,
    ) -> None:
        """Serve requests together: {id: (prompt tokens, output tokens)}."""
        for name, (prompt, _) in requests.items():
            self.monitor.request_started(name, prompt_tokens=prompt, group=(groups or {}).get(name, ""))
        left = {name: output for name, (_, output) in requests.items()}
        made = dict.fromkeys(requests, 0)
        while left:
            entries = [
                (name, requests[name][0], 0, 0)
                if made[name] == 0
                else (name, 0, 1, requests[name][0] + made[name])
                for name in left
            ]
            self.step(entries, seconds=seconds)
            for name in list(left):
                made[name] += 1
                if made[name] == left[name]:
                    del left[name]
                    self.monitor.request_finished(name, output_tokens=made[name])
