"""RAPL: trees of files, one a fault; a counter that wraps, and one that begins anew."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from wattmeter.faults import Fault
from wattmeter.metering.counter import EnergyCounter
from wattmeter.meters import MeterUnavailableError
from wattmeter.meters.rapl import RaplMeter


def rapl_tree(root: Path, **zones: str) -> Path:
    """A powercap tree: zone=name; each with 1 J on its counter and a range of 262,144 J."""
    for zone, name in zones.items():
        folder = root / zone.replace("__", ":").replace("_", "-").replace(".", ":")
        folder.mkdir(parents=True)
        (folder / "name").write_text(f"{name}\n")
        (folder / "energy_uj").write_text("1000000\n")
        (folder / "max_energy_range_uj").write_text("262144000000\n")
    return root


def two_packages(root: Path) -> Path:
    return rapl_tree(
        root,
        intel_rapl__0="package-0",
        intel_rapl__0__0="core",
        intel_rapl__0__1="dram",
        intel_rapl__1="package-1",
        intel_rapl__2="psys",
        intel_rapl_mmio__0="package-0",
    )


def test_rapl_zones_that_overlap_are_never_summed(tmp_path: Path) -> None:
    root = two_packages(tmp_path)
    assert [device.name for device in RaplMeter(root=root).devices] == ["package-0", "dram", "package-1"]
    assert [device.name for device in RaplMeter(root=root, psys=True).devices] == ["psys"]


def test_rapl_wrap(tmp_path: Path) -> None:
    meter = RaplMeter(root=two_packages(tmp_path))
    zone = meter.devices[0].id
    counter = tmp_path / "intel-rapl:0" / "energy_uj"
    seen = []
    for value in ("262143900000", "100000"):
        counter.write_text(value)
        seen.append(meter.read_energy(zone).energy_joules)
    assert seen == pytest.approx([262_143.9, 262_144.1])


def test_a_rapl_counter_that_began_anew_is_no_wrap(tmp_path: Path) -> None:
    """From 100 kJ to 5 J within moments: a wrap would be 162 kJ that nobody used."""
    meter = RaplMeter(root=two_packages(tmp_path))
    zone = meter.devices[0].id
    counter = tmp_path / "intel-rapl:0" / "energy_uj"
    seen = []
    for value in ("262143900000", "100000", "100000000000", "5000000"):
        counter.write_text(value)
        seen.append(meter.read_energy(zone).energy_joules)
    assert seen == pytest.approx([262_143.9, 262_144.1, 362_144.0, 5.0])


SPAN_JOULES = 262_144.0


@pytest.mark.parametrize(
    ("seconds", "watts", "joules"),
    [
        (30.0, 250.0, 7500.0),  # one wrap, or none: known
        (100.0, 1900.0, 190_000.0),
        (1060.0, 250.0, None),  # one wrap that ends above the value before it
        (2200.0, 250.0, None),  # two wraps
        (200.0, 10.0, None),  # none, but two were possible
    ],
)
def test_wraps_in_a_gap_are_counted_or_said_to_be_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, watts: float, joules: float | None
) -> None:
    now = [1_000_000_000]
    monkeypatch.setattr("wattmeter.meters.rapl.time.monotonic_ns", lambda: now[0])
    meter = RaplMeter(root=two_packages(tmp_path))
    zone = meter.devices[0].id
    file = tmp_path / "intel-rapl:0" / "energy_uj"
    used = SPAN_JOULES - 1000.0
    counter = EnergyCounter(zone)
    updates = []

    def read() -> None:
        file.write_text(f"{round(used % SPAN_JOULES * 1e6)}")
        updates.extend(counter.add(meter.read_energy(zone)))

    for _ in range(20):
        now[0] += 100_000_000
        used += 0.1 * watts
        read()
    before = counter.joules
    now[0] += round(seconds * 1e9)
    used += seconds * watts
    read()
    faults = [fault.fault for fault in counter.take_faults()]
    if joules is None:
        assert faults == [Fault.COUNTER_WRAPPED]
        assert counter.joules == before
    else:
        assert faults == []
        assert counter.joules - before == pytest.approx(joules)
    for _ in range(20):
        now[0] += 100_000_000
        used += 0.1 * watts
        read()
    assert counter.take_faults() == []
    assert [update.joules for update in updates] == sorted(update.joules for update in updates)
    assert updates[-1].joules - updates[-11].joules == pytest.approx(watts)


def test_a_failed_rapl_read_is_no_wrap(tmp_path: Path) -> None:
    """CodeCarbon takes the 0 of a failed read for a wrap and adds 262 kJ."""
    meter = RaplMeter(root=two_packages(tmp_path))
    zone = meter.devices[0].id
    counter = tmp_path / "intel-rapl:0" / "energy_uj"
    counter.write_text("5000000")
    assert meter.read_energy(zone).energy_joules == 5.0
    counter.rename(counter.with_name("gone"))
    lost = meter.read_energy(zone)
    assert (lost.energy_joules, lost.fault) == (None, Fault.NOT_SUPPORTED)
    counter.write_text("")
    assert meter.read_energy(zone).fault is Fault.UNKNOWN_ERROR
    counter.write_text("6000000")
    assert meter.read_energy(zone).energy_joules == 6.0
    assert meter.read_power(zone).fault is Fault.NOT_SUPPORTED


def test_no_rapl(tmp_path: Path) -> None:
    with pytest.raises(MeterUnavailableError, match="no package zone"):
        RaplMeter(root=tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_rapl_for_root_only(tmp_path: Path) -> None:
    (two_packages(tmp_path) / "intel-rapl:0" / "energy_uj").chmod(0)
    with pytest.raises(MeterUnavailableError, match="root only"):
        RaplMeter(root=tmp_path)


def test_rapl_permission_error_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = two_packages(tmp_path)
    read_text = Path.read_text

    def refuse(path: Path, *arguments: Any, **options: Any) -> str:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return read_text(path, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(MeterUnavailableError, match="root only") as caught:
        RaplMeter(root=root)
    assert caught.value.fault is Fault.NO_PERMISSION


@pytest.mark.parametrize("text", ["", "0", "many"])
def test_rapl_without_a_range(tmp_path: Path, text: str) -> None:
    (two_packages(tmp_path) / "intel-rapl:0" / "max_energy_range_uj").write_text(text)
    with pytest.raises(MeterUnavailableError, match="max_energy_range_uj holds no number"):
        RaplMeter(root=tmp_path)


@pytest.mark.parametrize("text", ["nan", "inf", "-5", "", "many", "1e9"])
def test_what_is_no_counter_is_a_fault_and_no_wrap(tmp_path: Path, text: str) -> None:
    """Joules counted over a wrap were forgotten after one reading of NaN."""
    meter = RaplMeter(root=two_packages(tmp_path))
    zone = meter.devices[0].id
    counter = tmp_path / "intel-rapl:0" / "energy_uj"
    for value in ("262143900000", "100000"):
        counter.write_text(value)
        wrapped = meter.read_energy(zone).energy_joules
    counter.write_text(text)
    assert meter.read_energy(zone).fault is Fault.UNKNOWN_ERROR
    counter.write_text("100000")
    after = meter.read_energy(zone)
    assert (after.energy_joules, after.fault) == (wrapped, None)


@pytest.mark.parametrize(("more", "joules"), [(-0.01, "wrapped"), (0.01, "anew")])
def test_a_fall_is_a_wrap_where_its_zone_can_have_drawn_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: float, joules: str
) -> None:
    """2,000 W for half a second, and a joule; what stands after a wrap loses nothing of it."""
    now = [1_000_000_000]
    monkeypatch.setattr("wattmeter.meters.rapl.time.monotonic_ns", lambda: now[0])
    meter = RaplMeter(root=two_packages(tmp_path))
    zone, file = meter.devices[0].id, tmp_path / "intel-rapl:0" / "energy_uj"
    seen = []
    for value in (SPAN_JOULES - 100.0, 901.0 + more, 901.0 + more, 910.0):
        file.write_text(f"{round(value * 1e6)}")
        seen.append(meter.read_energy(zone))
        now[0] += 500_000_000
    added = SPAN_JOULES if joules == "wrapped" else 0.0
    values = [SPAN_JOULES - 100.0, 901.0 + more + added, 901.0 + more + added, 910.0 + added]
    assert [one.energy_joules for one in seen] == pytest.approx(values)
    assert [one.fault for one in seen] == [None] * 4
