"""`wattserve meter calibrate` and what a meter tells of the gains."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from sim_server import serving
from wattmeter.meters.modelled import ModelledMeter
from wattmeter.sensor_gain import SensorGain, load_gains
from wattserve.cli import app
from wattserve.meter.app import MeterApp
from wattserve.meter.engines import Node
from wattserve.meter.process import MeterOptions, OptionsError, run
from wattserve.meter_spec import MeterSpec

ONE = ["--device", "GPU-1", "--ours", "10.0 kJ", "--theirs", "10.3 kJ"]
SURE = ["--reference-uncertainty", "0.5%"]


def calibrate(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["meter", "calibrate", *arguments])
    return done.exit_code, done.output


def test_one_window_is_written_with_its_gain(tmp_path: Path) -> None:
    out = tmp_path / "gains.json"
    status, said = calibrate(*ONE, *SURE, "--out", str(out), "--reference", "wall meter 7")
    assert status == 0, said
    assert "GPU-1: the reference counted 1.0300 times" in said
    assert "±1.00%" in said
    assert load_gains(out)["GPU-1"].reference == "wall meter 7"


def test_a_file_of_windows(tmp_path: Path) -> None:
    windows, out = tmp_path / "windows.csv", tmp_path / "gains.json"
    windows.write_text(
        "device,ours_joules,theirs_joules\nGPU-1,10000,10300\nGPU-1,20000,20500\nGPU-2,9000,8900\n"
    )
    status, said = calibrate("--windows", str(windows), *SURE, "--out", str(out))
    assert status == 0, said
    assert {name: one.windows for name, one in load_gains(out).items()} == {"GPU-1": 2, "GPU-2": 1}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--ours", "10 kJ", *SURE], "needs --device, --ours and --theirs"),
        ([*ONE[:4], "--theirs", "17 kJ", *SURE], "so far off"),
        ([*ONE[:4], "--theirs", "350 W", *SURE], "--theirs: got '350 W': energy is needed"),
        ([*ONE[:4], "--theirs", "10300", *SURE], "--theirs: got '10300', not one number with its unit"),
        ([*ONE, "--reference-uncertainty", "much"], "--reference-uncertainty"),
        ([*ONE, "--reference-uncertainty", "0"], "above 0"),
        ([*ONE, *SURE, "--windows", "x.csv"], "go without it"),
        (["--windows", "/no/such.csv", *SURE], "cannot be read"),
        ([*ONE, *SURE, "--out", "/no/such/folder/file"], "--out"),
    ],
)
def test_nonsense_is_one_sentence(arguments: list[str], said: str, tmp_path: Path) -> None:
    status, told = calibrate(
        *arguments, *([] if "--out" in arguments else ["--out", str(tmp_path / "g.json")])
    )
    assert status == 2
    assert said in told
    assert told.startswith("wattserve meter calibrate: ")
    assert told.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("device,ours\n", "lacks ours_joules"),
        ("device,ours_joules,theirs_joules\nGPU-1,1000,x\n", ":2: "),
        ("device,ours_joules,theirs_joules\n", "no windows"),
        ("device,ours_joules,theirs_joules\n,9000,9000\n", "without"),
    ],
)
def test_a_broken_file_is_told_by_its_line(tmp_path: Path, text: str, said: str) -> None:
    windows = tmp_path / "windows.csv"
    windows.write_text(text)
    status, told = calibrate("--windows", str(windows), *SURE, "--out", str(tmp_path / "g.json"))
    assert status == 2
    assert said in told


def test_a_meter_tells_the_gains_and_rescales_nothing() -> None:
    accelerators = ModelledMeter(lambda ns: 400.0 * ns * 1e-9)
    device = accelerators.devices[0].id
    node = Node(MeterSpec("modelled", "none"), meter=accelerators, idle_watts=100.0)
    meter = MeterApp(node, gains={device: SensorGain(1.03, 0.005)})
    with serving(meter.app) as url:
        state = httpx.get(f"{url}/energy").json()
        assert state["gains"][device]["gain"] == 1.03
        assert f'wattserve_device_gain_ratio{{device="{device}"}} 1.03' in httpx.get(f"{url}/metrics").text


def test_a_file_without_the_meters_devices_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "gains.json"
    assert calibrate(*ONE, *SURE, "--out", str(out))[0] == 0
    with pytest.raises(OptionsError, match=r"--calibration .*: has none of "):
        run(MeterOptions(meter="modelled:h200-llama-3.1-8b", port=0, calibration=str(out)))
