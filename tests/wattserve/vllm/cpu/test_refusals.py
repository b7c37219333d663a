"""What cannot work is refused with a sentence and a non-zero exit before vLLM loads anything."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from metered_vllm import environment

from wattserve.protocol.address import Ownership, address_of


def refused(*arguments: str, **variables: str) -> str:
    """The last line of stderr of a launcher that must end with 2, within seconds."""
    start = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-m", "wattserve.vllm", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment(**variables),
    )
    assert ended.returncode == 2, ended.stderr
    assert time.monotonic() - start < 20
    assert "Traceback" not in ended.stderr
    (line,) = ended.stderr.strip().splitlines()
    assert line.startswith("wattserve vllm: ")
    return line


def test_unknown_and_incomplete_flags(model: Path) -> None:
    assert "did you mean --energy-meter?" in refused(str(model), "--energy-metre", "nvml")
    assert "--energy-meter needs a value" in refused(str(model), "--energy-meter")
    assert "given twice" in refused(str(model), "--energy-meter=nvml", "--energy_meter", "nvml")


def test_no_model_and_a_model_that_is_not_there(profile: str) -> None:
    meter = f"modelled:{profile}"
    assert "which model?" in refused("--energy-meter", meter)
    assert "no model at /nowhere/model" in refused("/nowhere/model", "--energy-meter", meter)


@pytest.mark.parametrize(
    "flags",
    [
        ("--headless",),
        ("--nnodes", "2"),
        ("--distributed-executor-backend", "ray"),
    ],
)
def test_engines_whose_gpus_are_not_all_known_here(model: Path, profile: str, flags: tuple[str, ...]) -> None:
    line = refused(str(model), *flags, "--energy-meter", f"modelled:{profile}")
    assert flags[0].split("=")[0].replace("_", "-") in line.replace("_", "-")


def test_no_gpu_here(model: Path) -> None:
    line = refused(str(model))
    assert "nvml" in line.lower()


def test_meters_that_do_not_exist(model: Path, tmp_path: Path) -> None:
    assert "not a meter" in refused(str(model), "--energy-meter", "sundial")
    assert "nosuch.json" in refused(str(model), "--energy-meter", "modelled:/nosuch.json")
    broken = tmp_path / "broken.json"
    broken.write_text('{"idle_watts": 1}')
    assert "broken.json" in refused(str(model), "--energy-meter", f"modelled:{broken}")


def test_values_that_make_no_sense(model: Path, profile: str, tmp_path: Path) -> None:
    meter = ("--energy-meter", f"modelled:{profile}")
    assert "power in watts" in refused(str(model), *meter, "--energy-idle-watts", "many")
    assert "no file" in refused(str(model), *meter, "--energy-step-model", "/nosuch.json")
    (tmp_path / "something").write_text("")
    assert "not an empty folder" in refused(str(model), *meter, "--energy-record", str(tmp_path))
    assert "not a TCP port" in refused(str(model), *meter, "--port", "many")


def test_a_port_and_a_socket_in_use(model: Path, profile: str, tmp_path: Path) -> None:
    meter = ("--energy-meter", f"modelled:{profile}")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert "another server listens" in refused(str(model), *meter, "--host", "127.0.0.1", "--port", port)
    path = tmp_path / "steps.sock"
    owner = Ownership(address_of(str(path)))
    line = refused(str(model), *meter, "--port", "0", "--energy-socket", str(path))
    owner.release()
    assert "another meter already takes" in line


def test_a_flag_that_vllm_does_not_know_is_vllms_to_refuse(model: Path, profile: str) -> None:
    ended = subprocess.run(
        [
            sys.executable,
            "-m",
            "wattserve.vllm",
            str(model),
            "--no-such-flag",
            "--energy-meter",
            f"modelled:{profile}",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment(),
    )
    assert ended.returncode == 2
    assert "--no-such-flag" in ended.stderr


def test_a_meter_that_is_to_run_already(model: Path, profile: str, tmp_path: Path) -> None:
    at = ("--energy-meter-at", str(tmp_path / "nobody.sock"))
    assert "no meter answers there" in refused(str(model), *at)
    line = refused(str(model), *at, "--energy-meter", f"modelled:{profile}")
    assert "--energy-meter is for the meter that is started" in line
    assert "neither tcp" in refused(str(model), "--energy-meter-at", "http://localhost:1")
