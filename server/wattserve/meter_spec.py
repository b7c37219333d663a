"""`--meter KIND[:DETAIL]`, `--devices` and `--energy-meter` to a meter, in one place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from wattmeter import meters
from wattmeter.faults import Fault
from wattmeter.meters import MeterUnavailableError
from wattmeter.meters.base import Meter

# Meters of GPUs that can be named, and divided among engines.
GPU_KINDS = ("nvml", "amdsmi")


@dataclass(frozen=True, slots=True)
class MeterSpec:
    """Where joules come from: `kind`, its `detail`, and the `devices` to watch (None: all there are).

    `flag` is what a person wrote it after, for messages.
    """

    kind: str
    detail: str = ""
    devices: tuple[str, ...] | None = None
    flag: str = "--meter"

    @classmethod
    def parse(cls, text: str, devices: str | None = None, *, flag: str = "--meter") -> MeterSpec:
        """The meter that `text` and the comma-separated `devices` name. Raises MeterUnavailableError."""
        kind, _, detail = text.partition(":")
        named = None
        if devices is not None:
            named = tuple(part.strip() for part in devices.split(",") if part.strip()) or None
        needs_detail = kind in ("recorded", "modelled")
        if (kind not in meters.REGISTRY and kind != "modelled") or needs_detail != bool(detail):
            others = ", ".join(sorted(set(meters.REGISTRY) - {"recorded"}))
            raise MeterUnavailableError(
                f"{flag} {text}: not a meter; there are {others}, recorded:FILE and modelled:PROFILE"
            )
        if named is not None and kind not in GPU_KINDS and flag == "--meter":
            raise MeterUnavailableError(f"--devices is for --meter {' and '.join(GPU_KINDS)}, not {kind}")
        return cls(kind, detail, named, flag)

    @property
    def measures(self) -> bool:
        """Whether a load generator asked, whose `--energy` also takes the address of a meter."""
        return self.flag == "--energy"

    @property
    def divisible(self) -> bool:
        """Whether each engine has devices of its own; otherwise one engine has all that is metered."""
        return self.kind in (*GPU_KINDS, "modelled")

    def open(
        self,
        gpus: Sequence[str] | None = None,
        *,
        number: int = 0,
        is_own: Callable[[int], bool | None] | None = None,
    ) -> Meter:
        """The meter on `gpus`, or on `devices` where None; `number` tells modelled devices apart. `is_own`
        says whether a process that computes on them belongs to who is metered.

        Raises MeterUnavailableError.
        """
        if self.kind == "modelled":
            return self._modelled(number)
        if self.kind in GPU_KINDS:
            return self._gpus(gpus or self.devices, is_own)
        if self.kind == "recorded":
            return meters.open_meter("recorded", path=self.detail, loop=True)
        return meters.open_meter(self.kind)

    def _gpus(self, gpus: Sequence[str] | None, is_own: Callable[[int], bool | None] | None) -> Meter:
        try:
            return meters.open_meter(self.kind, gpus=gpus, is_own=is_own)
        except MeterUnavailableError as error:
            if error.fault is not Fault.DRIVER_NOT_LOADED:
                raise
            maker, other = ("NVIDIA", "amdsmi (AMD)") if self.kind == "nvml" else ("AMD", "nvml (NVIDIA)")
            elsewhere = f" {self.flag} http://HOST:8790 (another machine's meter)," if self.measures else ""
            advice = (
                f"without an {maker} GPU: {self.flag} {other}, {self.flag} rapl (the CPU's own counter),"
                f"{elsewhere} or `wattserve sim`"
            )
            raise MeterUnavailableError(f"{error}; {advice}", error.fault) from None

    def _modelled(self, number: int) -> Meter:
        from wattserve.sim.profile import ProfileError, load_profile
        from wattserve.sim.step_meter import StepModelMeter

        try:
            profile = load_profile(self.detail)
        except ProfileError as error:
            raise MeterUnavailableError(f"{self.flag} {self.kind}:{self.detail}: {error}") from None
        return StepModelMeter(
            profile.step_model,
            idle_watts=profile.idle_watts,
            name=profile.device_name,
            power_limit_watts=profile.power_limit_watts,
            number=number,
        )
