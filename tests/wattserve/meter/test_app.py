"""`wattserve meter`: beside a server and in front of it; and what the commands refuse."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from sim_server import serving, simulating
from wattmeter.faults import Fault
from wattmeter.meters import REGISTRY, MeterUnavailableError
from wattmeter.meters.modelled import ModelledMeter
from wattserve.cli import app as cli
from wattserve.http.server import listening_socket
from wattserve.meter.app import MeterApp
from wattserve.meter.engines import Node
from wattserve.meter_spec import MeterSpec
from wattserve.sim.app import Simulator


def steady_meter(watts: float = 200.0) -> ModelledMeter:
    origin = time.monotonic_ns()
    return ModelledMeter(lambda ns: watts * (ns - origin) * 1e-9)


@contextlib.contextmanager
def beside(upstream: str | None = None, idle_watts: float | None = None) -> Iterator[httpx.Client]:
    node = Node(MeterSpec("modelled", "none"), meter=steady_meter(), idle_watts=idle_watts)
    with (
        serving(MeterApp(node, upstream=upstream).app) as url,
        httpx.Client(base_url=url, timeout=20) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def proxied() -> Iterator[tuple[httpx.Client, Simulator]]:
    with simulating() as (url, simulator), beside(url) as client:
        yield client, simulator


def test_it_answers_for_windows_and_not_for_requests() -> None:
    with beside() as client:
        time.sleep(1.6)
        end = time.time() - 0.3
        found = client.get("/energy", params={"start": end - 1, "end": end}).json()
        assert found["total_joules"] == pytest.approx(200.0, rel=0.05)
        assert found["attributed_joules"] == {"prefill": None, "decode": None}
        assert found["idle_joules"] is None
        assert found["unattributed_joules"] == found["total_joules"]
        assert "idle_not_measured" in found["flags"]
        assert "engine steps" in found["reason"]
        state = client.get("/energy").json()
        assert state["idle"]["watts"] is None
        assert state["devices"][0]["source"] == "modelled"
        assert client.get("/energy/requests/x").status_code == 404
        assert client.get("/v1/models").status_code == 404
        assert client.get("/health").status_code == 200
        assert "wattserve_device_energy_joules_total" in client.get("/metrics").text
        assert 'bucket="prefill"' not in client.get("/metrics").text


def test_idle_power_that_was_given_is_set_apart() -> None:
    with beside(idle_watts=150.0) as client:
        time.sleep(2.5)
        end = time.time() - 0.8
        found = client.get("/energy", params={"start": end - 1, "end": end}).json()
        assert found["idle_joules"] == pytest.approx(150.0, rel=0.02)
        assert found["unattributed_joules"] == pytest.approx(found["total_joules"] - found["idle_joules"])


def test_the_proxy_streams_and_leaves_the_servers_own_energy(proxied: tuple[httpx.Client, Simulator]) -> None:
    client, _ = proxied
    body = {
        "prompt": [1, 2, 3], "max_tokens": 150, "ignore_eos": True, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    arrivals = []
    lines = []
    with client.stream("POST", "/v1/completions", json=body, headers={"x-request-id": "via"}) as response:
        assert response.headers["x-request-id"] == "via"
        for line in response.iter_lines():
            if line:
                arrivals.append(time.monotonic())
                lines.append(line)
    assert len(lines) == 152
    assert arrivals[100] - arrivals[0] > 0.05, "the stream came in one piece"
    usage = json.loads(lines[-2].removeprefix("data: "))["usage"]
    assert usage["energy"]["source"] == "modelled"
    assert client.get("/v1/models").json()["data"][0]["id"] == "llama-3.1-8b"
    assert client.post("/v1/completions", json={"prompt": []}).status_code == 400


def test_a_client_that_leaves_the_proxy_leaves_the_server_too(
    proxied: tuple[httpx.Client, Simulator],
) -> None:
    client, simulator = proxied
    body = {"prompt": [1], "max_tokens": 16000, "ignore_eos": True, "stream": True}
    with client.stream("POST", "/v1/completions", json=body) as response:
        next(response.iter_lines())
    deadline = time.monotonic() + 5
    while simulator.engine.running and time.monotonic() < deadline:
        time.sleep(0.02)
    assert simulator.engine.running == 0
    assert 'outcome="client_gone"' in client.get("/metrics").text


def test_an_upstream_that_is_not_there_is_502() -> None:
    listener = listening_socket("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    listener.close()
    with beside(url) as client:
        response = client.post("/v1/completions", json={"prompt": [1]})
        assert response.status_code == 502
        assert url in response.json()["error"]["message"]
        assert client.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["sim", "--profile", "h900"], "h200-llama-3.1-8b"),
        (["sim", "--kv-cache-tokens", "100"], "--kv-cache-tokens 100"),
        (["sim", "--max-num-seqs", "0"], "--max-num-seqs"),
        (["sim", "--port", "70000"], "--port"),
        (["sim", "--host", "no.such.host.invalid"], "no.such.host.invalid"),
        (["meter", "--meter", "sundial"], "sundial"),
        (["meter", "--meter", "recorded:/no/such/file"], "/no/such/file"),
        (["meter", "--meter", "rapl", "--devices", "0"], "--devices"),
        (["meter", "--upstream", "localhost:80"], "--upstream"),
        (["meter", "--meter", "modelled:/no/such.json"], "/no/such.json"),
        (["meter", "--meter", "modelled:h200-llama-3.1-8b", "--socket", "tcp://nowhere"], "tcp://nowhere"),
        (["meter", "--meter", "modelled:h200-llama-3.1-8b", "--socket", "http://a:1"], "http://a:1"),
        (["profiles", "--name", "h900"], "h900"),
    ],
)
def test_arguments_that_cannot_work_are_one_sentence_and_exit_2(arguments: list[str], says: str) -> None:
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 2
    assert says in result.output
    assert "Traceback" not in result.output


def test_a_port_that_is_taken() -> None:
    with contextlib.closing(listening_socket("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = CliRunner().invoke(cli, ["sim", "--port", port])
    assert result.exit_code == 2
    assert result.output.strip().count("\n") == 0
    assert f"--port {port}" in result.output


def test_help_and_profiles() -> None:
    for command in ("sim", "meter", "vllm", "profiles"):
        assert command in CliRunner().invoke(cli, ["--help"]).output
    assert "[any vllm serve flag]" in " ".join(CliRunner().invoke(cli, ["--help"]).output.split())
    assert "NVIDIA H200" in CliRunner().invoke(cli, ["profiles"]).output
    shown = json.loads(CliRunner().invoke(cli, ["profiles", "--name", "h200-llama-3.1-8b"]).output)
    assert shown["fit"]["held_out"]


def test_a_meter_is_one_file_and_one_line_in_the_registry(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "sundial_meter.py").write_text("class Sundial:\n    source = 'sundial'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(REGISTRY, "sundial", ("sundial_meter", "Sundial"))
    assert MeterSpec.parse("sundial").open().source == "sundial"


@pytest.mark.parametrize(
    ("fault", "advised"), [(Fault.DRIVER_NOT_LOADED, True), (Fault.NO_PERMISSION, False)]
)
def test_a_machine_without_a_gpu_is_told_what_there_is_for_it(
    fault: Fault, advised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unavailable(*_: object, **__: object) -> None:
        raise MeterUnavailableError("NVML does not start: why", fault)

    monkeypatch.setattr("wattmeter.meters.open_meter", unavailable)
    with pytest.raises(MeterUnavailableError, match=r"^NVML does not start: why") as caught:
        MeterSpec.parse("nvml", flag="--energy-meter").open()
    assert (
        "without an NVIDIA GPU: --energy-meter amdsmi (AMD), --energy-meter rapl" in str(caught.value)
    ) == advised
    assert caught.value.fault is fault


@pytest.mark.parametrize("kind", ["nvml", "amdsmi"])
def test_a_load_generator_without_a_gpu_is_also_told_of_meters_elsewhere(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unavailable(*_: object, **__: object) -> None:
        raise MeterUnavailableError("no driver", Fault.DRIVER_NOT_LOADED)

    monkeypatch.setattr("wattmeter.meters.open_meter", unavailable)
    for flag, told in (("--energy", True), ("--meter", False), ("--energy-meter", False)):
        with pytest.raises(MeterUnavailableError, match="`wattserve sim`") as caught:
            MeterSpec.parse(kind, flag=flag).open()
        assert f"{flag} rapl" in str(caught.value)
        assert ("--energy http://HOST:8790" in str(caught.value)) == told
