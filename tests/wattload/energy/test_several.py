"""Several hosts as one source: joules add up, clocks are each host's own, a missing host leaves no total."""

from __future__ import annotations

import time
from typing import Any

import pytest

from host_meters import Meter, meters
from wattload.config import load
from wattload.energy.client import EnergyClient
from wattload.energy.options import EnergyOptions
from wattload.energy.probe import probe
from wattload.energy.several import Host, SeveralMeters, host_names, summed
from wattload.errors import InputError
from wattmeter.schema import WindowEnergy


def source(*made: Meter, all_devices: bool = False) -> SeveralMeters:
    answer = probe(made[0].url, energy_url="\n".join(meter.url for meter in made), all_devices=all_devices)
    opened = answer.open_source()
    assert isinstance(opened, SeveralMeters)
    return opened


def test_joules_add_up_and_each_host_is_asked_on_its_own_clock() -> None:
    with meters(Meter([400.0], 12.5), Meter([100.0], -3.0)) as (a, b):
        several = source(a, b)
        start = time.time() - 10
        window = several.window(start, start + 4)
        assert (window.start_unix, window.end_unix) == (start, start + 4)
        assert window.total_joules == pytest.approx(2000.0)
        assert window.decode_joules == pytest.approx(1000.0)
        assert window.uncertainty_joules == pytest.approx(18**0.5)
        assert window.complete
        names = host_names([a.url, b.url])
        assert [device.id for device in window.devices] == [f"{name}/gpu-0" for name in names]
        for device, meter in zip(several.series(start, start + 4), (a, b), strict=True):
            assert device.unix_seconds[0] == pytest.approx(start, abs=0.15)
            assert device.joules[0] == pytest.approx(meter.watts[0] * (start + meter.ahead), rel=1e-6)


def test_each_hosts_clock_is_measured_and_stated() -> None:
    with meters(Meter([400.0], 12.5), Meter([100.0], -3.0)) as (a, b):
        answer = probe(a.url, energy_url=f"{a.url}\n{b.url}")
        assert answer.clock is not None
        assert answer.clock.hosts is not None
        assert answer.clock.offset_seconds == 0.0
        offsets = [clock.offset_seconds for clock in answer.clock.hosts.values()]
        assert offsets == pytest.approx([12.5, -3.0], abs=0.5)
        assert answer.clock.uncertainty_seconds == max(
            clock.uncertainty_seconds for clock in answer.clock.hosts.values()
        )
        assert sum("clock of" in note for note in answer.notes) == 2
        assert {d["id"] for d in answer.target.devices} == {f"{n}/gpu-0" for n in answer.clock.hosts}


def test_a_host_that_goes_missing_leaves_no_total_and_is_named() -> None:
    with meters(Meter([400.0], 0.0), Meter([100.0], 0.0)) as (a, b):
        several = source(a, b)
        start = time.time() - 10
        b.down = True
        window = several.window(start, start + 4)
        missing = host_names([a.url, b.url])[1]
        assert window.total_joules is None
        assert window.idle_joules is None
        assert not window.complete
        assert "partial_coverage" in window.all_flags
        assert window.reason is not None
        assert window.reason.startswith(f"the total lacks 1 of 2 hosts: {missing}")
        assert {device.id: device.joules for device in window.devices}[missing] is None
        assert len(several.series(start, start + 4)) == 1
        b.down = False
        assert several.window(start, start + 4).total_joules == pytest.approx(2000.0)
        a.down = b.down = True
        with pytest.raises(Exception, match="500"):
            several.window(start, start + 4)


def test_a_host_that_does_not_answer_before_the_load_is_refused() -> None:
    with meters(Meter([400.0], 0.0), Meter([100.0], 0.0)) as (a, b):
        b.down = True
        with pytest.raises(InputError, match=f"{b.url}.*every host"):
            probe(a.url, energy_url=f"{a.url}\n{b.url}")


def test_a_hosts_several_devices_must_be_the_targets() -> None:
    with meters(Meter([400.0], 0.0), Meter([100.0] * 8, 0.0)) as (a, b):
        with pytest.raises(InputError, match="energy_all_devices"):
            source(a, b)
        several = source(a, b, all_devices=True)
        start = time.time() - 10
        assert several.window(start, start + 1).total_joules == pytest.approx(1200.0)


def test_sensors_of_two_kinds_are_not_added() -> None:
    with meters(Meter([400.0], 0.0), Meter([100.0], 0.0)) as (a, b):
        b.kind = "rapl"
        with pytest.raises(InputError, match=r"nvml and rapl.*--component"):
            source(a, b)


def test_one_gpu_behind_two_addresses_is_refused() -> None:
    same = ["GPU-11111111-2222"]
    with (
        meters(Meter([400.0], 0.0, same), Meter([400.0], 0.0, same)) as (a, b),
        pytest.raises(InputError, match="counted by both"),
    ):
        probe(a.url, energy_url=f"{a.url}\n{b.url}")


def test_a_request_is_found_on_the_host_that_ran_it_and_summed_over_several() -> None:
    with meters(Meter([400.0], 0.0), Meter([100.0], 0.0)) as (a, b):
        a.known = {"one": 10.0, "both": 1.0}
        b.known = {"two": 20.0, "both": 2.0}
        found = source(a, b).settle(["one", "two", "both", "none"])
        assert {key: value.joules for key, value in found.items()} == {
            "one": 10.0, "two": 20.0, "both": 3.0, "none": None,
        }  # fmt: skip
        assert found["none"].status == "unknown"


def test_an_engine_of_two_hosts_has_the_joules_of_both() -> None:
    with meters(Meter([400.0], 0.0), Meter([100.0], 0.0)) as (a, b):
        a.engines = b.engines = {"engine": 2}
        a.known, b.known = {"r": 10.0, "lost": 1.0}, {"r": 2.0}
        several = source(a, b)
        start = time.time() - 10
        window = several.window(start, start + 4)
        assert window.total_joules == pytest.approx(2000.0)
        assert "other_hosts" not in window.all_flags
        found = several.settle(["r", "lost"])
        assert found["r"].joules == 12.0
        assert "other_hosts" not in found["r"].flags
        # One meter does not know it: what the other has is a part.
        assert found["lost"].joules is None
        assert "the meters of 1 of them know it" in str(found["lost"].reason)


def test_a_meter_of_an_engine_of_two_hosts_is_not_enough() -> None:
    with meters(Meter([400.0], 0.0), Meter([100.0], 0.0)) as (a, b):
        a.engines = {"engine": 2}
        says = "GPUs of 2 hosts, and meters of 1 of them are named"
        with pytest.raises(InputError, match=f"{says}.*--energy {a.url} --energy http://OTHER-HOST"):
            probe(a.url)
        # A meter that the engine does not send its steps to is not one of them.
        with pytest.raises(InputError, match=says):
            source(a, b)
        b.engines = {"engine": 3, "another": 1}
        with pytest.raises(InputError, match="GPUs of 3 hosts, and meters of 2"):
            source(a, b)


def test_a_window_that_is_a_part_keeps_its_flag() -> None:
    """An engine that was started on further hosts after the load began."""
    with meters(Meter([400.0], 0.0), Meter([100.0], 0.0)) as (a, b):
        several = source(a, b)
        a.engines = {"engine": 2}
        start = time.time() - 10
        assert "other_hosts" in several.window(start, start + 4).flags
        b.engines = {"engine": 2}
        assert "other_hosts" not in several.window(start, start + 4).flags


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (["a:8790", "http://b:1"], "http://a:8790\nhttp://b:1"),
        ("prometheus+http://a:1?query=sum by (x) (y)", "prometheus+http://a:1?query=sum by (x) (y)"),
        (["a:1"], "http://a:1"),
        ([], None),
        (None, None),
        ("none", "none"),
    ],
)
def test_sources_are_given_as_a_list_or_as_one(given: Any, kept: str | None) -> None:
    assert EnergyOptions.of({"energy": given}).energy == kept
    assert load({"url": "http://x", "energy": given or None}).energy.energy == kept


@pytest.mark.parametrize("given", [["a:1", "none"], ["a:1", "http://a:1"]])
def test_sources_that_make_no_sense_together_are_refused(given: list[str]) -> None:
    with pytest.raises(InputError):
        EnergyOptions.of({"energy": given})


@pytest.mark.parametrize(
    ("urls", "names"),
    [
        (["http://a:1", "http://b:1"], ["a", "b"]),
        (["http://a:1", "http://a:2"], ["a:1", "a:2"]),
        (["dcgm+http://a:9400/metrics", "http://b:1"], ["a", "b"]),
        (["dcgm+http://a:1/x?gpu=0", "dcgm+http://a:1/x?gpu=1"], ["a:1#1", "a:1#2"]),
    ],
)
def test_hosts_have_names(urls: list[str], names: list[str]) -> None:
    assert host_names(urls) == names


def test_components_add_up_where_every_host_knows_them() -> None:
    def window(**components: float | None) -> WindowEnergy:
        more = {name: {"joules": value, "source": "rapl"} for name, value in components.items()}
        return WindowEnergy.from_json({
            "start": 0.0, "end": 1.0, "complete": True, "total_joules": 5.0, "devices": [], "flags": [],
            "components": more,
        })  # fmt: skip

    hosts = [Host(name, EnergyClient(f"http://{name}")) for name in "ab"]
    answers = [window(dram=1.0, node=7.0, cpu_package=3.0), window(dram=2.0, node=None)]
    found = summed(0.0, 1.0, hosts, answers).more["components"]
    assert found["dram"]["joules"] == 3.0
    assert found["node"]["joules"] is None
    assert found["cpu_package"]["joules"] is None
    assert "1 of 2 hosts do not know it" in found["cpu_package"]["reason"]
