"""The recipes for Slurm and llm-d-benchmark, run as their schedulers would, against a simulated GPU."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sim_server import simulating

pytestmark = pytest.mark.services
ROOT = Path(__file__).resolve().parents[2]
HARNESS = ROOT / "deploy" / "llm-d-benchmark"
SBATCH = ROOT / "deploy" / "slurm" / "wattload.sbatch"


@pytest.fixture
def programs(tmp_path: Path) -> dict[str, str]:
    """An environment in which `wattload`, `wattserve` and `python3` are those of the test."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, module in (("wattload", "wattload.cli"), ("wattserve", "wattserve.cli"), ("python3", "")):
        words = f'"{sys.executable}" {"-m " + module if module else ""} "$@"'
        (folder / name).write_text(f"#!/bin/sh\nexec {words}\n", encoding="utf-8")
        (folder / name).chmod(0o755)
    paths = os.pathsep.join([*(path for path in sys.path if path), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": paths}


@pytest.fixture(scope="module")
def simulator() -> Iterator[str]:
    with simulating() as (url, _):
        yield url


def run_json(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((path / "run.json").read_text(encoding="utf-8"))
    return loaded


def test_the_harness_writes_a_report_with_watts_that_the_benchmark_reads(
    simulator: str, programs: dict[str, str], tmp_path: Path
) -> None:
    profiles = tmp_path / "workspace" / "profiles" / "wattload"
    profiles.mkdir(parents=True)
    template = (HARNESS / "profiles" / "conversation.yaml.in").read_text(encoding="utf-8")
    profile = template.replace("REPLACE_ENV_LLMDBENCH_DEPLOY_CURRENT_MODEL", "llama-3.1-8b")
    profile = profile.replace('"5m"', '"6s"').replace('"30s"', '"1s"').replace("rate = 2", "rate = 5")
    (profiles / "conversation.yaml").write_text(profile, encoding="utf-8")
    results = tmp_path / "results"
    done = subprocess.run(
        [str(HARNESS / "wattload-llm-d-benchmark.sh")],
        env={
            **programs,
            "LLMDBENCH_RUN_EXPERIMENT_RESULTS_DIR": str(results),
            "LLMDBENCH_HARNESS_STACK_ENDPOINT_URL": simulator,
            "LLMDBENCH_RUN_WORKSPACE_DIR": str(tmp_path / "workspace"),
            "LLMDBENCH_RUN_EXPERIMENT_HARNESS_WORKLOAD_NAME": "conversation.yaml",
            "LLMDBENCH_RUN_EXPERIMENT_ID": "experiment-1",
        },
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert list(results.glob("benchmark_report*.yaml")), done.stdout + done.stderr
    (written,) = results.glob("benchmark_report*.yaml")
    run = run_json(results / "run")
    assert done.returncode == (0 if run["valid"] else 1), done.stdout + done.stderr
    benchmark = pytest.importorskip("llmd_benchmark_report", reason="pip install --group services")
    report = benchmark.import_benchmark_report(str(written))
    assert report.run.eid == "experiment-1"
    assert "modelled energy" in report.run.keywords
    (component,) = report.results.observability.components
    watts = component.aggregate.power_consumption
    assert watts.units == "Watts"
    assert watts.mean == pytest.approx(run["energy"]["mean_watts"], rel=0.1)
    assert len(component.time_series.power_consumption.series) > 10
    aggregate = report.results.request_performance.aggregate
    assert aggregate.requests.total == run["requests"]["in_window"]
    assert aggregate.latency.time_to_first_token.mean == run["latency"]["ttft_seconds"]["mean"]


def test_a_folder_that_is_no_run_is_refused_in_a_sentence(tmp_path: Path, programs: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, str(HARNESS / "benchmark_report.py"), str(tmp_path), str(tmp_path / "out.yaml")],
        env=programs, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("benchmark_report: ")
    assert "Traceback" not in done.stderr


def job(tmp_path: Path, programs: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    own = {"SERVE": "wattserve sim", "SLURM_JOB_ID": str(os.getpid()), "OUT": str(tmp_path / "run")}
    return subprocess.Popen(
        ["bash", str(SBATCH), "--trace", "conv", "--rate", "5", "--warmup", "1s", *arguments],
        env={**programs, **own},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def test_the_batch_job_leaves_a_run_and_no_server(tmp_path: Path, programs: dict[str, str]) -> None:
    process = job(tmp_path, programs, "--duration", "5s")
    output, _ = process.communicate(timeout=300)
    run = run_json(tmp_path / "run")
    assert process.returncode == (0 if run["valid"] else 1), output
    assert run["requests"]["completed"] > 0
    assert not _alive(process.pid), output


def test_a_job_that_is_ended_keeps_what_was_measured(tmp_path: Path, programs: dict[str, str]) -> None:
    process = job(tmp_path, programs, "--duration", "10m")
    assert process.stdout is not None
    before = ""
    for line in process.stdout:
        before += line
        if re.search(r" [1-9]\d* completed", line):
            break
    process.send_signal(signal.SIGTERM)  # to the batch shell alone, as B:TERM@120 does
    output, _ = process.communicate(timeout=300)
    assert run_json(tmp_path / "run")["requests"]["completed"] > 0, before + output
    assert not _alive(process.pid), output


def test_a_server_that_does_not_start_ends_the_job(tmp_path: Path, programs: dict[str, str]) -> None:
    process = subprocess.Popen(
        ["bash", str(SBATCH)], env={**programs, "SERVE": "false"}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "the server ended before it was ready" in output


def _alive(group: int) -> bool:
    """Whether a process of the job's session is left."""
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except (OSError, IndexError):
            continue
        if fields[3] == str(group) and fields[0] != "Z":
            return True
    return False
