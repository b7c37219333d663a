"""The launcher's reading of its arguments, without vLLM."""

from __future__ import annotations

import importlib.util

import pytest

from wattserve.vllm import launcher, meter_process


@pytest.mark.parametrize(
    ("given", "put"),
    [
        (["--port", "8001", "org/m"], ["org/m", "--port", "8001"]),
        (["-tp", "2", "--port=8001", "org/m"], ["org/m", "-tp", "2", "--port=8001"]),
        (["org/m", "--port", "8001"], ["org/m", "--port", "8001"]),
        (["--port", "8001", "--model", "org/m"], ["--port", "8001", "--model", "org/m"]),
        (["--served-model-name", "a", "b"], ["--served-model-name", "a", "b"]),
        (["--cudagraph-capture-sizes", "1", "2"], ["--cudagraph-capture-sizes", "1", "2"]),
        (["--enforce-eager", "org/m"], ["--enforce-eager", "org/m"]),
        (["--port", "8001"], ["--port", "8001"]),
    ],
)
def test_a_model_that_comes_last_is_put_first(given: list[str], put: list[str]) -> None:
    assert launcher.model_first(given) == put


def test_help_without_vllm_is_ours_and_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(meter_process, "settle", lambda _: pytest.fail("help starts no meter"))
    assert launcher.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert "--energy-meter" in out
    assert "vLLM is not installed" in out
    assert "cannot be listed" in out


@pytest.mark.parametrize(
    ("arguments", "also", "says"),
    [
        (["--nnodes", "2"], [], "--nnodes 2 with 0 further meters"),
        (["-n", "3"], ["tcp://127.0.0.1:1?devices=0"], "--nnodes 3 with 1 further meters"),
        (
            ["--nnodes", "2"],
            ["tcp://127.0.0.1:1?devices=0"],
            "--energy-also-at tcp://127.0.0.1:1: no meter answers",
        ),
        (["--distributed-executor-backend", "ray"], [], "--energy-also-at"),
        (["--headless"], [], "--headless has no HTTP server"),
    ],
)
def test_hosts_whose_gpus_are_not_known_are_refused_before_vllm_starts(
    arguments: list[str],
    also: list[str],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(meter_process, "ATTACH_SECONDS", 0.1)
    monkeypatch.setattr(meter_process, "settle", lambda _: pytest.fail("a meter was started"))
    flags = [text for one in also for text in ("--energy-also-at", one)]
    assert launcher.main(["org/m", *arguments, *flags]) == 2
    line = capsys.readouterr().err
    assert says in line
    assert line.count("\n") == 1
