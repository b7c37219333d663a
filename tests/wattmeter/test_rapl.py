"""RAPL: trees of files, one a fault; a counter that wraps, and one that begins anew."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from wattmeter.faults import Fault
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
