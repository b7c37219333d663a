"""AMD GPUs: units, what is refused, wraps, partitions and dies, with a stand-in for AMD's binding."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from fake_amdsmi import (
    DRIVER_NOT_LOADED,
    FUNCTIONS,
    NO_PERM,
    NOT_FOUND,
    NOT_INIT,
    NOT_SUPPORTED,
    TIMEOUT,
    AmdSmiLibraryException,
    Board,
    FakeAmdsmi,
    Mode,
    boards,
)
from wattmeter.faults import Fault
from wattmeter.metering.counter import EnergyCounter
from wattmeter.meters import MeterUnavailableError, open_meter
from wattmeter.meters.amdsmi import AmdsmiMeter, visible_gpus

UUIDS = [f"{i}eff74a1-0000-1000-807a-18b1f9e5c3d2" for i in range(8)]


def meter_of(fake: FakeAmdsmi | None = None, **options: Any) -> AmdsmiMeter:
    return AmdsmiMeter(
        amdsmi=fake or FakeAmdsmi(*boards()), environment=options.pop("environment", {}), **options
    )


def test_units() -> None:
    meter = meter_of(FakeAmdsmi(*boards(1)))
    (device,) = meter.devices
    assert (device.id, device.name, device.source) == (UUIDS[0], "AMD Instinct MI300X OAM", "amdsmi")
    assert device.power_limit_watts == pytest.approx(750.0)
    # A milliard counts of 15.3 uJ.
    assert meter.read_energy(device.id).energy_joules == pytest.approx(15_300.0)
    assert meter.read_power(device.id).power_watts == 140.0
    assert meter.read_average_power(device.id).fault is Fault.NOT_SUPPORTED
    state = meter.read_state(device.id)
    assert (state.temperature_celsius, state.sm_clock_hertz) == (41.0, 2.1e9)
    assert state.power_limit_watts == pytest.approx(750.0)
    assert state.utilization_ratio == pytest.approx(0.37)
    assert (state.clock_event_reasons, state.other_processes, state.mig) == (None, None, False)


@pytest.mark.parametrize(
    ("power", "watts"),
    [
        ({"current_socket_power": 140, "average_socket_power": "N/A"}, 140.0),
        ({"current_socket_power": "N/A", "average_socket_power": 95}, 95.0),
        ({"current_socket_power": 0xFFFF_FFFF, "socket_power": 97, "average_socket_power": 0xFFFF}, 97.0),
        ({"average_socket_power": 95}, 95.0),
        ({"current_socket_power": "N/A", "average_socket_power": "N/A"}, None),
    ],
)
def test_power_is_the_moments_or_else_the_average(power: dict[str, Any], watts: float | None) -> None:
    meter = meter_of(FakeAmdsmi(*boards(1, power=power)))
    reading = meter.read_power(UUIDS[0])
    assert reading.power_watts == watts
    assert reading.fault is (None if watts is not None else Fault.NOT_SUPPORTED)


@pytest.mark.parametrize(("cap", "watts"), [(750_000_000, 750.0), (750, 750.0), (0, None), ("N/A", None)])
def test_a_power_cap_is_in_microwatts_or_watts(cap: Any, watts: float | None) -> None:
    limit = meter_of(FakeAmdsmi(*boards(1, cap=cap))).devices[0].power_limit_watts
    assert limit == (None if watts is None else pytest.approx(watts))


def test_temperatures_are_in_degrees_or_thousandths() -> None:
    fake = FakeAmdsmi(*boards(1, celsius=41_500))
    assert meter_of(fake).read_state(UUIDS[0]).temperature_celsius == pytest.approx(41.5)


def test_the_accumulator_under_its_former_name() -> None:
    meter = meter_of(FakeAmdsmi(*boards(1, energy_key="power")))
    assert meter.read_energy(UUIDS[0]).energy_joules == pytest.approx(15_300.0)


@pytest.mark.parametrize("count", [0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF, "N/A", None])
def test_a_board_without_an_accumulator_is_metered_by_its_power(count: Any) -> None:
    """MeteredDevice integrates power where the first read of the counter says `not_supported`."""
    meter = meter_of(FakeAmdsmi(*boards(1, count=count)))
    reading = meter.read_energy(UUIDS[0])
    assert (reading.energy_joules, reading.fault) == (None, Fault.NOT_SUPPORTED)


@pytest.mark.parametrize("resolution", [0.0, -15.3, float("nan"), float("inf"), None, "N/A"])
def test_a_count_without_its_unit_is_no_energy(resolution: Any) -> None:
    meter = meter_of(FakeAmdsmi(*boards(1, resolution=resolution)))
    reading = meter.read_energy(UUIDS[0])
    assert (reading.energy_joules, reading.fault) == (None, Fault.UNKNOWN_ERROR)


def test_a_count_of_65535_is_a_count() -> None:
    """It is what other fields say where they have no value."""
    meter = meter_of(FakeAmdsmi(*boards(1, count=0xFFFF)))
    assert meter.read_energy(UUIDS[0]).energy_joules == pytest.approx(1.0, rel=0.01)


# --- errors -------------------------------------------------------------------------------------------------

CODES = {
    NOT_SUPPORTED: Fault.NOT_SUPPORTED,
    NO_PERM: Fault.NO_PERMISSION,
    TIMEOUT: Fault.TIMEOUT,
    NOT_FOUND: Fault.GPU_LOST,
    DRIVER_NOT_LOADED: Fault.DRIVER_NOT_LOADED,
    NOT_INIT: Fault.DRIVER_NOT_LOADED,
    54: Fault.RESET_REQUIRED,
    43: Fault.NOT_SUPPORTED,
    7: Fault.UNKNOWN_ERROR,
    777: Fault.UNKNOWN_ERROR,
}


@pytest.mark.parametrize(("code", "fault"), CODES.items())
def test_each_error_of_a_read_is_a_named_fault(code: int, fault: Fault) -> None:
    fake = FakeAmdsmi(*boards(1))
    meter = meter_of(fake)
    fake.boards[0].count = AmdSmiLibraryException(code)
    fake.boards[0].power = AmdSmiLibraryException(code)
    energy, power = meter.read_energy(UUIDS[0]), meter.read_power(UUIDS[0])
    assert (energy.energy_joules, energy.fault) == (None, fault)
    assert (power.power_watts, power.fault) == (None, fault)


@pytest.mark.parametrize(("code", "fault"), CODES.items())
def test_a_library_that_does_not_start_is_one_sentence(code: int, fault: Fault) -> None:
    fake = FakeAmdsmi(*boards())
    fake.init_error = AmdSmiLibraryException(code)
    with pytest.raises(MeterUnavailableError, match="AMD SMI does not start") as caught:
        meter_of(fake)
    assert caught.value.fault is fault
    assert "\n" not in str(caught.value)


def test_a_board_with_neither_energy_nor_power_is_refused() -> None:
    error = AmdSmiLibraryException(NO_PERM)
    fake = FakeAmdsmi(*boards(1, count=error, power=error))
    with pytest.raises(MeterUnavailableError, match="neither energy nor power: the driver refuses") as caught:
        meter_of(fake)
    assert caught.value.fault is Fault.NO_PERMISSION
    assert fake.shut_downs == 1


def test_a_lost_gpu_does_not_stop_the_others() -> None:
    fake = FakeAmdsmi(*boards(3))
    fake.boards[1].lost = True
    assert [device.id for device in meter_of(fake, gpus=["2", "0"]).devices] == [UUIDS[2], UUIDS[0]]
    for gpus in (None, ["1"]):
        with pytest.raises(MeterUnavailableError, match=r"GPU 1 does not respond .*that do: 0, 2") as caught:
            meter_of(fake, gpus=gpus)
        assert caught.value.fault is Fault.GPU_LOST


@pytest.mark.parametrize("name", ["amdsmi_get_energy_count", "amdsmi_init", "AmdSmiException"])
def test_a_binding_without_what_is_needed_is_one_sentence(name: str) -> None:
    with pytest.raises(MeterUnavailableError, match=f"has no {name}: install the amdsmi of ROCm") as caught:
        meter_of(FakeAmdsmi(*boards(), missing=(name,)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_an_old_binding_lacks_is_done_without(name: str) -> None:
    meter = meter_of(FakeAmdsmi(*boards(1), missing=(name,)), is_own=lambda pid: True)
    device = meter.devices[0].id
    assert meter.read_energy(device).energy_joules == pytest.approx(15_300.0)
    assert meter.read_power(device).power_watts == 140.0
    meter.read_state(device)


@pytest.mark.parametrize(
    ("source", "sentence", "fault"),
    [
        (
            "print('no library')\nraise KeyError('libamd_smi.so')",
            "does not find libamd_smi.so",
            Fault.DRIVER_NOT_LOADED,
        ),
        (
            "raise OSError('Could not load libamd_smi.so')",
            "does not find libamd_smi.so",
            Fault.DRIVER_NOT_LOADED,
        ),
        (
            "raise AttributeError('undefined symbol: x')",
            "does not fit the installed ROCm",
            Fault.DRIVER_MISMATCH,
        ),
        (None, "not installed: pip install amdsmi", Fault.DRIVER_NOT_LOADED),
    ],
)
def test_a_binding_that_cannot_be_imported_is_one_sentence(
    source: str | None, sentence: str, fault: Fault, tmp_path: Any, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.delitem(sys.modules, "amdsmi", raising=False)
    if source is None:
        monkeypatch.setitem(sys.modules, "amdsmi", None)
    else:
        (tmp_path / "amdsmi.py").write_text(source + "\n")
        monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(MeterUnavailableError, match=sentence) as caught:
        open_meter("amdsmi")
    assert caught.value.fault is fault
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


def test_the_library_is_initialised_again_after_the_driver_was_loaded_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = FakeAmdsmi(*boards())
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    meter = meter_of(fake)
    fake.reload()
    assert meter.read_energy(UUIDS[1]).fault is Fault.DRIVER_NOT_LOADED
    assert fake.inits == 1
    now[0] += 5.0
    assert meter.read_energy(UUIDS[1]).fault is Fault.DRIVER_NOT_LOADED
    assert (fake.inits, fake.shut_downs) == (2, 1)
    assert meter.read_energy(UUIDS[1]).energy_joules == pytest.approx(15_300.0)
    assert meter.read_energy(UUIDS[0]).energy_joules == pytest.approx(15_300.0)
    fake.init_error = AmdSmiLibraryException(DRIVER_NOT_LOADED)
    fake.reload()
    for _ in range(100):
        now[0] += 0.1
        assert meter.read_energy(UUIDS[0]).fault is Fault.DRIVER_NOT_LOADED
    assert 8 <= fake.inits - 2 <= 11


# --- wraps --------------------------------------------------------------------------------------------------


def read_all(
    fake: FakeAmdsmi, monkeypatch: Any, counts: list[int], seconds: float
) -> tuple[float, set[Fault]]:
    """(joules that the counter gained, faults) over readings of `counts`, `seconds` apart."""
    now = [1_000_000_000]
    monkeypatch.setattr("time.monotonic_ns", lambda: now[0])
    fake.boards[0].count = counts[0]
    meter = meter_of(fake)
    counter = EnergyCounter(UUIDS[0], from_first_reading=True, stale_seconds=1e6, gap_seconds=1e6)
    faults: set[Fault] = set()
    for count in counts:
        fake.boards[0].count = count
        counter.add(meter.read_energy(UUIDS[0]))
        faults |= {interval.fault for interval in counter.take_faults()}
        now[0] += round(seconds * 1e9)
    return counter.joules, faults


def test_a_counter_of_32_bits_goes_on_over_its_wrap(monkeypatch: pytest.MonkeyPatch) -> None:
    """MI100 and Radeon boards: 2^32 counts are 66 kJ, four minutes at 290 W."""
    step = round(20.0 / 15.3e-6)  # 200 W for 0.1 s
    counts = [((1 << 32) - 3 * step + i * step) % (1 << 32) for i in range(8)]
    assert counts[-1] < counts[0]
    joules, faults = read_all(FakeAmdsmi(*boards(1)), monkeypatch, counts, 0.1)
    assert joules == pytest.approx(140.0, rel=1e-6)
    assert not faults


def test_after_too_long_without_a_reading_no_number_of_wraps_is_guessed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, faults = read_all(FakeAmdsmi(*boards(1)), monkeypatch, [5_000, 6_000, 7_000], 300.0)
    assert faults == {Fault.COUNTER_WRAPPED}


def test_a_counter_of_64_bits_never_wraps_and_its_fall_is_a_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    step = round(20.0 / 15.3e-6)
    wide = [(1 << 32) + i * step for i in range(4)]
    joules, faults = read_all(FakeAmdsmi(*boards(1)), monkeypatch, wide, 0.1)
    assert joules == pytest.approx(60.0, rel=1e-6)
    assert not faults
    # After hours without a reading, too.
    joules, faults = read_all(FakeAmdsmi(*boards(1)), monkeypatch, [1 << 40, (1 << 40) + step], 3600.0)
    assert joules == pytest.approx(20.0, rel=1e-6)
    assert not faults
    _, faults = read_all(FakeAmdsmi(*boards(1)), monkeypatch, [*wide, *range(0, 4 * step, step)], 0.1)
    assert faults == {Fault.COUNTER_RESET}


def test_a_reset_of_a_young_counter_is_no_wrap(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rise that a wrap would mean is more than a board can draw in 0.1 s."""
    step = round(20.0 / 15.3e-6)
    counts = [*range(step, 4 * step, step), *range(0, 3 * step, step)]
    _, faults = read_all(FakeAmdsmi(*boards(1)), monkeypatch, counts, 0.1)
    assert faults == {Fault.COUNTER_RESET}


# --- which GPUs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "visible"),
    [
        ({}, None),
        ({"HIP_VISIBLE_DEVICES": "1,0"}, ["1", "0"]),
        ({"CUDA_VISIBLE_DEVICES": "1"}, ["1"]),
        ({"HIP_VISIBLE_DEVICES": "0", "CUDA_VISIBLE_DEVICES": "1"}, ["0"]),
        ({"ROCR_VISIBLE_DEVICES": "2,3"}, ["2", "3"]),
        ({"ROCR_VISIBLE_DEVICES": "2,3", "HIP_VISIBLE_DEVICES": "1"}, ["3"]),
        ({"ROCR_VISIBLE_DEVICES": "GPU-ab,3", "HIP_VISIBLE_DEVICES": "0"}, ["GPU-ab"]),
        ({"ROCR_VISIBLE_DEVICES": "2,3", "HIP_VISIBLE_DEVICES": "0,2,1"}, ["2"]),
        ({"HIP_VISIBLE_DEVICES": "0,-1,1"}, ["0"]),
        ({"HIP_VISIBLE_DEVICES": ""}, []),
    ],
)
def test_variables_that_hide_gpus(environment: dict[str, str], visible: list[str] | None) -> None:
    assert visible_gpus(environment) == visible
    if visible == []:
        with pytest.raises(MeterUnavailableError, match="hides them all"):
            meter_of(environment=environment)


def test_indices_are_those_of_hip_where_they_are_told() -> None:
    fake = FakeAmdsmi(*boards(2))
    fake.boards[0].hip_id, fake.boards[1].hip_id = 1, 0
    fake.boards[0].hip_uuid = "GPU-00aa"
    assert [device.id for device in meter_of(fake, gpus=["0"]).devices] == [UUIDS[1]]
    assert [device.id for device in meter_of(fake, gpus=["GPU-00"]).devices] == [UUIDS[0]]
    assert [device.id for device in meter_of(fake, gpus=["0000:06:00.0"]).devices] == [UUIDS[1]]
    assert [device.id for device in meter_of(fake, gpus=["1EFF"]).devices] == [UUIDS[1]]


@pytest.mark.parametrize(
    ("gpus", "sentence"),
    [
        (["7"], "there is no GPU 7: AMD SMI lists 2"),
        (["GPU-x"], "0 GPUs of this host"),
        (["0000:"], "2 GPUs of this host"),
        (["0", UUIDS[0]], "named twice"),
    ],
)
def test_gpus_that_are_not_there(gpus: list[str], sentence: str) -> None:
    fake = FakeAmdsmi(*boards())
    with pytest.raises(MeterUnavailableError, match=sentence):
        meter_of(fake, gpus=gpus)
    assert fake.shut_downs == 1


def test_boards_without_a_uuid_or_with_the_same_one_are_told_apart() -> None:
    fake = FakeAmdsmi(
        Board("0000:05:00.0", uuid="ff"), Board("0000:06:00.0", uuid="ff"), Board("0000:07:00.0")
    )
    ids = [device.id for device in meter_of(fake).devices]
    assert ids == ["ff@0000:05:00", "ff@0000:06:00", "AMD-0000:07:00.0"]
    with pytest.raises(MeterUnavailableError, match="2 GPUs of this host"):
        meter_of(fake, gpus=["ff"])


@pytest.mark.parametrize(
    ("product", "market", "name"),
    [
        ("AMD Instinct MI300X OAM", "MI300X", "AMD Instinct MI300X OAM"),
        ("0x74a1", "AMD Instinct MI300X", "AMD Instinct MI300X"),
        ("N/A", "0x74a1", "AMD GPU"),
        ("MI\udcff300X", "", "MI?300X"),
    ],
)
def test_names(product: str, market: str, name: str) -> None:
    (device,) = meter_of(FakeAmdsmi(*boards(1, product=product, market=market))).devices
    assert device.name == name
    device.name.encode("utf-8")


def partitions(number: int = 4) -> list[Board]:
    """One MI300X in a mode of `number` partitions, of which the first has the sensors, and another whole."""
    parts = [Board(f"0000:05:00.{i}", uuid=UUIDS[0], hip_id=i, partition="CPX") for i in range(number)]
    for part in parts[1:]:
        part.count = part.power = AmdSmiLibraryException(NOT_SUPPORTED)
    return [*parts, Board("0000:06:00.0", uuid=UUIDS[1], hip_id=number)]


@pytest.mark.parametrize("gpus", [None, ["0", "1", "2", "3", "4"], ["2", "4"]])
def test_a_gpu_in_partitions_is_metered_once_and_flagged(gpus: list[str] | None) -> None:
    meter = meter_of(FakeAmdsmi(*partitions()), gpus=gpus)
    assert [device.id for device in meter.devices] == UUIDS[:2]
    assert meter.device_flags == {UUIDS[0]: {Fault.MIG}, UUIDS[1]: set()}
    assert meter.read_energy(UUIDS[0]).energy_joules == pytest.approx(15_300.0)
    assert meter.read_state(UUIDS[0]).mig
    assert not meter.read_state(UUIDS[1]).mig


def test_a_partition_without_sensors_alone_is_refused() -> None:
    """A container that was given the second partition only."""
    with pytest.raises(MeterUnavailableError, match="neither energy nor power"):
        meter_of(FakeAmdsmi(partitions()[1]))


def test_a_gpu_in_partitions_is_found_again_by_its_first_one(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeAmdsmi(*partitions())
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    meter = meter_of(fake)
    fake.reload()
    now[0] += 5.0
    meter.read_energy(UUIDS[0])
    assert meter.read_energy(UUIDS[0]).energy_joules == pytest.approx(15_300.0)


def dies() -> list[Board]:
    """Two MI250X: of each pair the first die's sensor shows both dies' power, the second's shows nothing."""
    found = boards(4, product="AMD Instinct MI250X", market="MI250X")
    for i, board in enumerate(found):
        board.power = {"current_socket_power": "N/A", "average_socket_power": 89 if i % 2 == 0 else 0}
        board.count = 1_000_000 if i % 2 == 0 else 0
    return found


@pytest.mark.parametrize(
    ("gpus", "metered"), [(None, [0, 2]), (["0", "1"], [0]), (["0"], [0]), (["3", "2"], [2])]
)
def test_the_dies_of_an_mi250_are_read_at_the_first(gpus: list[str] | None, metered: list[int]) -> None:
    meter = meter_of(FakeAmdsmi(*dies()), gpus=gpus)
    assert [device.id for device in meter.devices] == [UUIDS[i] for i in metered]
    assert meter.device_flags == {UUIDS[i]: {Fault.MODULE_SCOPE} for i in metered}


@pytest.mark.parametrize("gpus", [None, ["0", "1"]])
def test_a_second_die_may_show_nothing_at_all(gpus: list[str] | None) -> None:
    found = dies()[:2]
    found[1].power = found[1].count = AmdSmiLibraryException(NOT_SUPPORTED)
    assert [device.id for device in meter_of(FakeAmdsmi(*found), gpus=gpus).devices] == UUIDS[:1]
    # A first die that shows nothing is no second one: its energy would be missing.
    found[0].power = found[0].count = AmdSmiLibraryException(NOT_SUPPORTED)
    with pytest.raises(MeterUnavailableError, match="neither energy nor power"):
        meter_of(FakeAmdsmi(*found), gpus=gpus)


@pytest.mark.parametrize("gpus", [["1"], ["0", "3"]])
def test_the_second_die_of_an_mi250_alone_is_refused(gpus: list[str]) -> None:
    """Its counter stands at 0: the joules are the first die's, and would be missing."""
    with pytest.raises(MeterUnavailableError, match="is the second die of its module") as caught:
        meter_of(FakeAmdsmi(*dies()), gpus=gpus)
    assert caught.value.fault is Fault.MODULE_SCOPE


def test_a_gpu_of_a_virtual_machine_is_refused() -> None:
    with pytest.raises(MeterUnavailableError, match="virtual machines share") as caught:
        meter_of(FakeAmdsmi(*boards(1, mode=Mode.GUEST)))
    assert caught.value.fault is Fault.VGPU
    assert meter_of(FakeAmdsmi(*boards(1, mode=Mode.PASSTHROUGH))).devices


def test_processes_of_others_are_counted_where_they_can_be_told() -> None:
    fake = FakeAmdsmi(*boards(1, pids=(10, 11, 12)))
    assert meter_of(fake, is_own=lambda pid: pid == 10).read_state(UUIDS[0]).other_processes == 2
    known = {10: True, 11: None, 12: False}
    assert meter_of(fake, is_own=known.get).read_state(UUIDS[0]).other_processes is None
    fake.boards[0].pids = AmdSmiLibraryException(NO_PERM)
    assert meter_of(fake, is_own=lambda pid: True).read_state(UUIDS[0]).other_processes is None
