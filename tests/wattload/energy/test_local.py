"""`--energy nvml`: this host's own sensors, read by a process that the load generator starts."""

from __future__ import annotations

import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from wattload.energy import local
from wattload.energy.client import EnergyClient
from wattload.energy.local import address_of, is_local
from wattload.energy.options import EnergyOptions
from wattload.errors import InputError
from wattload.own_server import end


@pytest.mark.parametrize(
    "source", ["nvml", "amdsmi", "rapl", "nvml?gpu=0", "nvml?gpu=0,GPU-1234", "amdsmi?gpu=1"]
)
def test_words_for_this_hosts_sensors(source: str) -> None:
    assert is_local(source)
    assert EnergyOptions(energy=source).energy == source


@pytest.mark.parametrize(
    "source", ["none", "nvml:8790", "rapl?gpu=0", "nvml?pod=x", "http://nvml", "nvml+http://h"]
)
def test_others_are_addresses(source: str) -> None:
    assert not is_local(source)
    assert address_of(source) == source


@pytest.mark.parametrize("word", ["dcgm", "prometheus", "auto"])
def test_the_name_of_a_kind_that_needs_an_address_is_refused_with_a_way_out(word: str) -> None:
    with pytest.raises(ValueError, match=r"needs the |is the default"):
        EnergyOptions(energy=word)


@pytest.mark.skipif(find_spec("amdsmi") is not None, reason="AMD SMI's binding is installed")
def test_amd_gpus_without_amds_binding_are_a_sentence_with_the_package() -> None:
    with pytest.raises(InputError, match=r"energy: amdsmi: .*not installed: pip install amdsmi"):
        address_of("amdsmi")


def test_sensors_that_are_not_there_are_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"energy: a recording: .*nothing\.csv.*No such file"):
        local.start(f"recorded:{tmp_path}/nothing.csv", None, "energy: a recording")


def test_a_meter_of_our_own_answers_for_a_window_and_ends_with_us(tmp_path: Path) -> None:
    """A recording stands in for the sensors: 100 W, read every 4 ms for a minute."""
    rows = (f"{1e9 + 0.004 * i:.3f},{100.0 * 100 * (i // 25):.0f},100000,100000" for i in range(15_000))
    recording = tmp_path / "counter.csv"
    recording.write_text("\n".join(rows) + "\n")
    meter = local.start(f"recorded:{recording}", None, "energy: a recording")
    client = EnergyClient(meter.address)
    try:
        assert [device["source"] for device in client.info()["devices"]] == ["nvml"]
        deadline = time.monotonic() + 60.0
        begin = time.time()
        while True:
            window = client.window(begin, begin + 2.0)
            if window.complete:
                break
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert window.total_joules == pytest.approx(200.0, rel=0.1)
    finally:
        client.close()
        assert meter.process.stdin is not None
        meter.process.stdin.close()
        try:
            meter.process.wait(30)
        finally:
            end(meter.process)
