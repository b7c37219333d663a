"""MLflow and Weights & Biases as their own clients have it: a folder of MLflow's, and W&B offline."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from synthetic_run import Synthetic
from wattload.analysis.compute import load_run
from wattload.rundir.run import Run

pytestmark = pytest.mark.services


def made(path: Path) -> Run:
    Synthetic(duration=40.0, rate=5.0, gaps=False).write(path)
    run = load_run(path)
    (path / "report.html").write_text("<p>report</p>")
    return run


def exported(path: Path, flag: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, since the clients keep state and threads."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "WANDB_"))}
    return subprocess.run(
        [sys.executable, "-m", "wattload.cli", "export", str(path), flag],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        cwd=path.parent,
        env=kept | environment,
    )


def test_mlflow_has_the_numbers_the_settings_and_the_files_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="mlflow-skinny is not installed: pip install --group services")
    run = made(tmp_path / "r")
    store = tmp_path / "store"
    environment = {"MLFLOW_TRACKING_URI": store.as_uri(), "MLFLOW_ALLOW_FILE_STORE": "true"}
    for _ in range(2):
        done = exported(run.path, "--mlflow", **environment)
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == 1, "MLflow prints addresses of its own"
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    from mlflow.tracking import MlflowClient

    client = MlflowClient(store.as_uri())
    experiment = client.get_experiment_by_name("wattload")
    assert experiment is not None
    (logged,) = client.search_runs([experiment.experiment_id])
    each = run.energy.per_request_joules
    assert each is not None
    assert logged.data.metrics["energy.per_request_joules.mean"] == each.mean
    assert logged.data.params["workload"] == "conv"
    assert logged.data.params["simulated"] == "False"
    assert logged.data.tags["wattload.valid"] == str(run.valid).lower()
    assert logged.info.run_name == "synthetic"
    assert {file.path for file in client.list_artifacts(logged.info.run_id)} == {"run.json", "report.html"}


def test_an_mlflow_server_that_is_down_is_one_sentence(tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="mlflow-skinny is not installed: pip install --group services")
    run = made(tmp_path / "r")
    done = exported(run.path, "--mlflow", MLFLOW_TRACKING_URI="http://user:hunter2@127.0.0.1:9")
    assert done.returncode == 1
    assert "MLflow: " in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert "hunter2" not in done.stdout + done.stderr


def test_wandb_has_the_numbers_and_nothing_of_the_machine(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed: pip install --group services")
    run = made(tmp_path / "r")
    done = exported(run.path, "--wandb", WANDB_MODE="offline", WANDB_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    (kept,) = folder.glob("*.wandb")
    raw = kept.read_bytes()
    each = run.energy.per_request_joules
    assert each is not None
    assert b"per_request_joules" in raw
    assert json.dumps(each.mean).encode() in raw
    assert (folder / "files" / "run.json").exists()
    assert {file.name for file in (folder / "files").iterdir()} == {"run.json", "report.html"}


def test_wandb_without_a_key_is_one_sentence_and_asks_nothing(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed: pip install --group services")
    run = made(tmp_path / "r")
    done = exported(run.path, "--wandb", WANDB_DIR=str(tmp_path), HOME=str(tmp_path), NETRC="/dev/null")
    assert done.returncode == 1
    assert "Weights & Biases: " in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr
