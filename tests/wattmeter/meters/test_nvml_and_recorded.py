"""Meters: NVML's errors by name, recordings, the modelled counter, the registry."""

from __future__ import annotations

import gzip
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from meter_fakes import MS, SECOND
from shared import shared_file
from wattmeter.clock import Clocks
from wattmeter.faults import Fault
from wattmeter.meters import REGISTRY, MeterUnavailableError, open_meter
from wattmeter.meters.modelled import ModelledMeter
from wattmeter.meters.nvml import NvmlMeter, visible_gpus
from wattmeter.meters.recorded import RecordedMeter, load_readings


class FakeNvml:
    """As much of pynvml as the meter uses, for boards whose answers a test sets."""

    NVML_TEMPERATURE_GPU = 0
    NVML_CLOCK_SM = 1

    class NVMLError(Exception):
        def __init__(self, value: int) -> None:
            super().__init__(f"code {value}")
            self.value = value

    def __init__(self, boards: int = 2, **answers: Any) -> None:
        self.boards = boards
        self.answers = {
            "init": None,
            "energy": 1_000_000,
            "instant": (0, 127_818),
            "average": (0, 83_968),
            "usage": 83_968,
            "virtualization": 0,
            "mig": [0, 0],
            "name": "NVIDIA H200",
            "limit": 700_000,
            "temperature": 31,
            "clock": 1980,
            "reasons": 0x4,
            "throttle": 0x4,
            "lost": set(),
            "pids": [],
            "utilization": 0,
            "stamp": 0,
            **answers,
        }
        self.closed = 0
        self.inits = 0
        # A handle is (board, session of the driver): one of an earlier session is worth nothing.
        self.session = 0
        self.known_session = 0

    def _give(self, name: str) -> Any:
        value = self.answers[name]
        if isinstance(value, self.NVMLError):
            raise value
        return value

    def nvmlInit(self) -> None:
        self.inits += 1
        self._give("init")
        self.known_session = self.session

    def nvmlShutdown(self) -> None:
        self.closed += 1

    def nvmlDeviceGetCount(self) -> int:
        return self.boards

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index in self.answers["lost"]:
            raise self.NVMLError(15)
        return index + 1000 * self.session

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return f"GPU-{handle % 1000}aaaa"

    def nvmlDeviceGetName(self, handle: int) -> Any:
        return self._give("name")

    def nvmlDeviceGetVirtualizationMode(self, handle: int) -> Any:
        return self._give("virtualization")

    def nvmlDeviceGetMigMode(self, handle: int) -> Any:
        return self._give("mig")

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        return SimpleNamespace(gpu=self._give("utilization"))

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> Any:
        return [SimpleNamespace(pid=pid) for pid in self._give("pids")]

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> Any:
        if handle // 1000 != self.session or self.known_session != self.session:
            raise self.NVMLError(1)
        return self._give("energy")

    def nvmlDeviceGetPowerUsage(self, handle: int) -> Any:
        return self._give("usage")

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: int) -> Any:
        return self._give("limit")

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> Any:
        return self._give("temperature")

    def nvmlDeviceGetClockInfo(self, handle: int, kind: int) -> Any:
        return self._give("clock")

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: int) -> Any:
        return self._give("reasons")

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: int) -> Any:
        return self._give("throttle")

    def nvmlDeviceGetFieldValues(self, handle: int, fields: list[int]) -> Any:
        code, value = self._give({186: "instant", 185: "average"}[fields[0]])
        stamp = self.answers["stamp"]
        return [SimpleNamespace(nvmlReturn=code, timestamp=stamp, value=SimpleNamespace(uiVal=value))]


class LackingNvml:
    """A binding without some functions."""

    def __init__(self, fake: FakeNvml, missing: set[str]) -> None:
        self._fake, self._missing = fake, missing

    def __getattr__(self, name: str) -> Any:
        if name in self._missing:
            raise AttributeError(f"module 'pynvml' has no attribute {name!r}")
        return getattr(self._fake, name)


def nvml_meter(fake: FakeNvml | None = None, **options: Any) -> NvmlMeter:
    return NvmlMeter(nvml=fake or FakeNvml(), environment=options.pop("environment", {}), **options)


CODES = {
    3: Fault.NOT_SUPPORTED,
    4: Fault.NO_PERMISSION,
    9: Fault.DRIVER_NOT_LOADED,
    10: Fault.TIMEOUT,
    15: Fault.GPU_LOST,
    16: Fault.RESET_REQUIRED,
    18: Fault.DRIVER_MISMATCH,
    999: Fault.UNKNOWN_ERROR,
    777: Fault.UNKNOWN_ERROR,
    1: Fault.DRIVER_NOT_LOADED,
    13: Fault.NOT_SUPPORTED,
}


@pytest.mark.parametrize(("code", "fault"), CODES.items())
def test_each_nvml_error_of_a_read_is_a_named_fault(code: int, fault: Fault) -> None:
    fake = FakeNvml()
    meter = nvml_meter(fake)
    device = meter.devices[0].id
    fake.answers["energy"] = fake.answers["usage"] = FakeNvml.NVMLError(code)
    fake.answers["instant"] = (code, 0)
    energy, power = meter.read_energy(device), meter.read_power(device)
    assert (energy.energy_joules, energy.fault) == (None, fault)
    assert (power.power_watts, power.fault) == (None, fault)


@pytest.mark.parametrize(("code", "fault"), CODES.items())
def test_nvml_that_does_not_start_is_one_sentence(code: int, fault: Fault) -> None:
    with pytest.raises(MeterUnavailableError, match="NVML does not start") as caught:
        nvml_meter(FakeNvml(init=FakeNvml.NVMLError(code)))
    assert caught.value.fault is fault
    assert "\n" not in str(caught.value)


def test_units_and_status() -> None:
    meter = nvml_meter()
    device = meter.devices[0]
    assert device.power_limit_watts == 700.0
    assert meter.read_energy(device.id).energy_joules == 1000.0
    assert meter.read_power(device.id).power_watts == pytest.approx(127.818)
    assert meter.read_average_power(device.id).power_watts == pytest.approx(83.968)
    state = meter.read_state(device.id)
    assert (state.temperature_celsius, state.sm_clock_hertz, state.power_limit_watts) == (31.0, 1.98e9, 700.0)
    assert state.clock_event_reasons == 0x4


def test_an_older_driver_has_the_clock_event_reasons_under_their_former_name() -> None:
    meter = nvml_meter(FakeNvml(reasons=FakeNvml.NVMLError(13), throttle=0x20))
    assert meter.read_state(meter.devices[0].id).clock_event_reasons == 0x20


def test_status_that_is_not_given_is_none() -> None:
    error = FakeNvml.NVMLError(3)
    meter = nvml_meter(FakeNvml(temperature=error, clock=error, limit=error, reasons=error, throttle=error))
    state = meter.read_state(meter.devices[0].id)
    assert (state.temperature_celsius, state.sm_clock_hertz, state.power_limit_watts) == (None, None, None)
    assert state.clock_event_reasons is None


def test_old_driver_without_the_instant_field_gives_power_usage() -> None:
    meter = nvml_meter(FakeNvml(instant=(3, 0)))
    assert meter.read_power(meter.devices[0].id).power_watts == pytest.approx(83.968)


def test_board_with_neither_energy_nor_power_is_refused() -> None:
    error = FakeNvml.NVMLError(4)
    with pytest.raises(MeterUnavailableError, match="neither energy nor power: the driver refuses this user"):
        nvml_meter(FakeNvml(energy=error, instant=(4, 0), usage=error))


def test_a_gpu_divided_by_mig_is_metered_once_and_flagged() -> None:
    """dcgm-exporter shows the whole GPU's power once for each MIG instance."""
    meter = nvml_meter(FakeNvml(boards=1, mig=[1, 1]))
    assert len(meter.devices) == 1
    assert meter.device_flags[meter.devices[0].id] == {Fault.MIG}
    with pytest.raises(MeterUnavailableError, match=r"MIG instance.*name the GPU"):
        nvml_meter(gpus=["MIG-1234"])
    fake = FakeNvml()
    fake.nvmlDeviceGetHandleByUUID = lambda uuid: 100  # type: ignore[attr-defined]
    fake.nvmlDeviceGetDeviceHandleFromMigDeviceHandle = lambda handle: 1  # type: ignore[attr-defined]
    assert [device.id for device in nvml_meter(fake, gpus=["MIG-1234"]).devices] == ["GPU-1aaaa"]


def test_mig_that_is_switched_on_later_is_in_the_state() -> None:
    fake = FakeNvml()
    meter = nvml_meter(fake)
    device = meter.devices[0].id
    assert not meter.read_state(device).mig
    fake.answers["mig"] = [1, 1]
    assert meter.read_state(device).mig


def test_a_lost_gpu_does_not_stop_the_others() -> None:
    fake = FakeNvml(boards=3, lost={1})
    assert [device.id for device in nvml_meter(fake, gpus=["2", "0"]).devices] == ["GPU-2aaaa", "GPU-0aaaa"]
    with pytest.raises(MeterUnavailableError, match="GPU 1 does not respond") as caught:
        nvml_meter(fake)
    assert caught.value.fault is Fault.GPU_LOST


@pytest.mark.parametrize("name", ["nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetUUID", "nvmlInit"])
def test_a_binding_without_what_is_needed_names_the_package(name: str) -> None:
    fake = LackingNvml(FakeNvml(), {name})
    with pytest.raises(
        MeterUnavailableError, match=f"has no {name}: pip install --upgrade nvidia-ml-py"
    ) as caught:
        NvmlMeter(nvml=fake, environment={})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "nvmlDeviceGetFieldValues",
        "nvmlDeviceGetVirtualizationMode",
        "nvmlDeviceGetMigMode",
        "nvmlDeviceGetName",
        "nvmlDeviceGetEnforcedPowerLimit",
        "nvmlDeviceGetTemperature",
        "nvmlDeviceGetUtilizationRates",
        "nvmlDeviceGetComputeRunningProcesses",
        "nvmlDeviceGetCurrentClocksEventReasons",
    ],
)
def test_an_old_binding_is_done_without_where_it_can_be(name: str) -> None:
    meter = NvmlMeter(nvml=LackingNvml(FakeNvml(), {name}), environment={}, is_own=lambda pid: True)
    device = meter.devices[0].id
    assert meter.read_energy(device).energy_joules == 1000.0
    assert meter.read_power(device).power_watts is not None
    assert meter.read_state(device).sm_clock_hertz == 1.98e9


@pytest.mark.parametrize("name", [b"NVIDIA \xff H100", "NVIDIA \udcff H100"])
def test_a_name_that_is_not_utf8_is_readable(name: Any) -> None:
    (device, _) = nvml_meter(FakeNvml(name=name)).devices
    assert device.name.startswith("NVIDIA ")
    assert device.name.endswith(" H100")
    device.name.encode("utf-8")


def test_nvml_is_initialised_again_after_the_driver_was_loaded_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeNvml()
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    meter = nvml_meter(fake)
    device = meter.devices[1].id
    fake.session = 1  # handles of the session before are worth nothing
    assert meter.read_energy(device).fault is Fault.DRIVER_NOT_LOADED
    assert fake.inits == 1
    now[0] += 5.0
    assert meter.read_energy(device).fault is Fault.DRIVER_NOT_LOADED
    assert (fake.inits, fake.closed) == (2, 1)
    assert meter.read_energy(device).energy_joules == 1000.0
    assert meter.read_energy(meter.devices[0].id).energy_joules == 1000.0


def test_a_driver_that_stays_away_is_not_asked_at_every_read(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeNvml()
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    meter = nvml_meter(fake)
    fake.answers["init"] = fake.answers["energy"] = FakeNvml.NVMLError(9)
    for _ in range(100):
        now[0] += 0.1
        assert meter.read_energy(meter.devices[0].id).fault is Fault.DRIVER_NOT_LOADED
    assert 8 <= fake.inits <= 11


def test_a_power_field_whose_own_time_stands_is_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeNvml(stamp=1_790_000_000_000_000)
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    meter = nvml_meter(fake)
    device = meter.devices[0].id
    assert meter.read_power(device).power_watts is not None
    now[0] += 1.0
    assert meter.read_power(device).power_watts is not None
    now[0] += 2.0
    assert meter.read_power(device).fault is Fault.STALE_SENSOR
    fake.answers["stamp"] += 1
    assert meter.read_power(device).power_watts is not None
    fake.answers["stamp"] = 1  # no time at all
    for _ in range(5):
        now[0] += 2.0
        assert meter.read_power(device).power_watts is not None


def test_processes_of_others_are_counted_where_they_can_be_told() -> None:
    fake = FakeNvml(pids=[10, 11, 12], utilization=37)
    state = nvml_meter(fake, is_own=lambda pid: pid == 10).read_state("GPU-0aaaa")
    assert state.other_processes == 2
    assert state.utilization_ratio == pytest.approx(0.37)
    known = {10: True, 11: None, 12: False}
    assert nvml_meter(fake, is_own=known.get).read_state("GPU-0aaaa").other_processes is None
    assert nvml_meter(fake).read_state("GPU-0aaaa").other_processes is None
    refused = FakeNvml(pids=FakeNvml.NVMLError(4), utilization=FakeNvml.NVMLError(3))
    state = nvml_meter(refused, is_own=lambda pid: True).read_state("GPU-0aaaa")
    assert (state.other_processes, state.utilization_ratio) == (None, None)


def test_vgpu_is_refused() -> None:
    with pytest.raises(MeterUnavailableError, match="vGPU") as caught:
        nvml_meter(FakeNvml(virtualization=2))
    assert caught.value.fault is Fault.VGPU


def test_module_scope_is_labelled() -> None:
    meter = nvml_meter(FakeNvml(name="NVIDIA GH200 480GB"))
    assert meter.device_flags[meter.devices[0].id] == {Fault.MODULE_SCOPE}


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (None, None),
        ("1", ["GPU-1aaaa"]),
        ("1,0", ["GPU-1aaaa", "GPU-0aaaa"]),
        ("GPU-1a", ["GPU-1aaaa"]),
        ("0,-1,1", ["GPU-0aaaa"]),
    ],
)
def test_cuda_visible_devices(value: str | None, names: list[str] | None) -> None:
    environment = {} if value is None else {"CUDA_VISIBLE_DEVICES": value}
    meter = nvml_meter(environment=environment)
    assert [device.id for device in meter.devices] == (names or ["GPU-0aaaa", "GPU-1aaaa"])


@pytest.mark.parametrize(
    ("gpus", "sentence"),
    [
        (["7"], "there is no GPU 7: NVML lists 2"),
        (["GPU-x"], "0 GPUs of this host"),
        (["GPU-"], "2 GPUs of this host"),
        (["0", "GPU-0"], "named twice"),
    ],
)
def test_gpus_that_are_not_there(gpus: list[str], sentence: str) -> None:
    fake = FakeNvml()
    with pytest.raises(MeterUnavailableError, match=sentence):
        nvml_meter(fake, gpus=gpus)
    assert fake.closed == 1


def test_hidden_gpus_are_not_metered() -> None:
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}) == []
    with pytest.raises(MeterUnavailableError, match="hides them all"):
        nvml_meter(environment={"CUDA_VISIBLE_DEVICES": ""})


# --- recordings ---------------------------------------------------------------------------------------------

ROWS = "".join(f"{1000 + i / 10},{1000 * i},{50_000 + i},{60_000 + i}\n" for i in range(21))


def test_recording_is_replayed_in_the_present(tmp_path: Path) -> None:
    path = tmp_path / "nvml.csv"
    path.write_text(ROWS)
    now = [0]
    meter = RecordedMeter(path, now_ns=lambda: now[0])
    device = meter.devices[0].id
    assert meter.read_energy(device).energy_joules == 0.0
    now[0] = 1050 * MS
    assert meter.read_energy(device).energy_joules == 10.0
    assert meter.read_power(device).power_watts == pytest.approx(60.010)
    now[0] = 2 * SECOND
    assert meter.read_energy(device).fault is Fault.GPU_LOST
    assert len(list(meter.replay())) == 21


def test_a_looped_recording_goes_on_counting(tmp_path: Path) -> None:
    path = tmp_path / "nvml.csv.gz"
    with gzip.open(path, "wt") as file:
        file.write(ROWS)
    now = [0]
    meter = RecordedMeter(path, loop=True, speed=2.0, now_ns=lambda: now[0])
    values = []
    for _ in range(30):
        values.append(meter.read_energy(meter.devices[0].id).energy_joules)
        now[0] += 100 * MS
    assert values == sorted(values)  # type: ignore[type-var]
    assert values[-1] == pytest.approx(58.0)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "no readings"),
        ("1,2,3\n", ":1: needs unix s"),
        (ROWS + "1002.1,x,1,1\n", ":22: not a number"),
        (ROWS + "1002.1,nan,1,1\n", ":22: needs unix s"),
        (ROWS + "900,1,1,1\n", ":22: the time goes back"),
    ],
)
def test_bad_recordings_name_file_and_line(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(MeterUnavailableError, match="bad.csv.*" + sentence):
        load_readings(path)


def test_missing_recording(tmp_path: Path) -> None:
    with pytest.raises(MeterUnavailableError, match="cannot be read: No such file"):
        open_meter("recorded", path=tmp_path / "none.csv")
    with pytest.raises(MeterUnavailableError, match="speed"):
        RecordedMeter(tmp_path / "none.csv", speed=0.0)


def test_the_recorded_square_wave_has_its_load_column() -> None:
    readings = load_readings(shared_file("h200", "square-wave.csv"))
    assert readings.load is not None
    assert set(readings.load) == {0.0, 1.0}


# --- modelled, registry -------------------------------------------------------------------------------------


def test_the_modelled_counter_steps_as_a_real_one() -> None:
    now = [0]
    meter = ModelledMeter(lambda ns: ns * 1e-9 * 500.0, clocks=Clocks(lambda: now[0]))
    values: set[float] = set()
    for i in range(400):
        now[0] = i * MS
        reading = meter.read_energy("virtual-0")
        assert meter.source == "modelled"
        assert reading.energy_joules is not None
        values.add(reading.energy_joules)
    assert sorted(values) == pytest.approx([0.0, 50.0, 100.0, 150.0])
    assert meter.read_power("virtual-0").power_watts == pytest.approx(500.0)
    with pytest.raises(ValueError, match="no device"):
        meter.read_energy("virtual-1")


def test_every_meter_of_the_registry_says_what_is_missing() -> None:
    with pytest.raises(MeterUnavailableError, match=r"'amd' is not a meter .*amdsmi, nvml, rapl, rec"):
        open_meter("amd")
    assert set(REGISTRY) == {"amdsmi", "nvml", "rapl", "recorded"}
