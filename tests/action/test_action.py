"""The GitHub Action's step, run as a runner would: outputs, summary and exit status against a simulator."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from sim_server import simulating
from synthetic_run import Synthetic
from wattload.analysis.compute import finish

ROOT = Path(__file__).resolve().parents[2]
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action" / "action.yml").read_text("utf-8"))


def step(folder: Path, **inputs: str) -> tuple[subprocess.CompletedProcess[str], dict[str, str], str]:
    """The ended step, its outputs and the job's summary; other inputs have the action's defaults."""
    given = {name: str(spec.get("default", "")) for name, spec in ACTION["inputs"].items()}
    given |= {name.replace("_", "-"): value for name, value in inputs.items()}
    environment = {
        **os.environ,
        **{f"WL_{name.replace('-', '_').upper()}": value for name, value in given.items()},
        "WATTLOAD": os.environ.get("WATTLOAD", f"{sys.executable} -m wattload.cli"),
        "WL_PYTHON": sys.executable,
        "GITHUB_OUTPUT": str(folder / "outputs"),
        "GITHUB_STEP_SUMMARY": str(folder / "summary"),
        "RUNNER_TEMP": str(folder),
    }
    done = subprocess.run(
        ["bash", str(ROOT / "action" / "run.sh")],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    read = {
        path: path.read_text("utf-8") if path.exists() else ""
        for path in (folder / "outputs", folder / "summary")
    }
    outputs = dict(line.split("=", 1) for line in read[folder / "outputs"].splitlines())
    return done, outputs, read[folder / "summary"]


def test_every_input_reaches_the_script_and_every_output_is_the_step_s() -> None:
    (only,) = ACTION["runs"]["steps"]
    assert set(only["env"]) == {f"WL_{name.replace('-', '_').upper()}" for name in ACTION["inputs"]}
    for name, spec in ACTION["outputs"].items():
        assert spec["value"] == f"${{{{ steps.run.outputs.{name} }}}}"


def test_what_cannot_be_run_is_said_and_fails(tmp_path: Path) -> None:
    done, outputs, _ = step(tmp_path, url="http://127.0.0.1:9", duration="5s", warmup="1s")
    assert done.returncode == 2
    (error,) = (line for line in done.stdout.splitlines() if line.startswith("::error"))
    assert error.startswith("::error title=wattload::no run was made: wattload: ")
    assert "http://127.0.0.1:9" in error
    assert outputs == {}


def test_a_quote_that_is_not_closed_is_said(tmp_path: Path) -> None:
    done, _, _ = step(tmp_path, url="http://127.0.0.1:9", args="--assert 'energy")
    assert done.returncode == 2
    assert "a quote is not closed" in done.stdout


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with simulating() as (url, _):
        yield url


@pytest.mark.e2e
def test_a_run_has_outputs_and_a_summary(server: str, tmp_path: Path) -> None:
    done, outputs, summary = step(
        tmp_path, url=server, rate="5", duration="8s", warmup="1s", args="--tag ci --max-failures 100%"
    )
    assert outputs["run"] == "wattload-run"
    assert float(outputs["joules-per-request"]) > 0
    assert float(outputs["joules-per-output-token"]) > 0
    assert (done.returncode == 0) == (outputs["valid"] == "true"), done.stdout
    assert summary.startswith("## wattload: conv at 5 requests per second\n```\n")
    assert "J" in summary


# What `wattload run` leaves behind, from a run that is there already; every other command is the real one.
PREPARED = """
if [ "$1" = run ]; then
  while [ $# -gt 1 ]; do [ "$1" != --out ] || cp -r "$PREPARED_RUN" "$2"; shift; done
  exit 0
fi
exec {python} -m wattload.cli "$@"
"""


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the run `cheap`, and `dear`, which took 10 % more; `run` makes a copy of the latter."""
    for name, factor in (("cheap", 1.0), ("dear", 1.1)):
        made = Synthetic(
            rate=20.0,
            duration=30.0,
            warmup=5.0,
            prefill_token_joules=0.015 * factor,
            decode_token_joules=0.3 * factor,
        )
        finish(made.write(tmp_path / name))
    script = tmp_path / "wattload.sh"
    script.write_text(PREPARED.format(python=sys.executable))
    monkeypatch.setenv("PREPARED_RUN", str(tmp_path / "dear"))
    monkeypatch.setenv("WATTLOAD", f"bash {script}")
    return tmp_path


@pytest.mark.parametrize(
    ("conditions", "status", "said"),
    [
        ("energy.per_request_joules.mean > +50%", 0, ""),
        (
            "energy.per_request_joules.mean > +50%\n\nenergy.per_request_joules.mean > +1%\n",
            1,
            "Energy regression",
        ),
        ("no.such.number > +1%", 2, "title=wattload::not compared: "),
    ],
)
def test_a_baseline_is_compared(prepared: Path, conditions: str, status: int, said: str) -> None:
    done, outputs, summary = step(
        prepared, url="http://127.0.0.1:9", baseline="cheap", fail_if=conditions, duration="30s", warmup="5s"
    )
    assert done.returncode == status, done.stdout + done.stderr
    assert ("::error" in done.stdout) == bool(said)
    assert said in done.stdout
    assert "### Against the baseline" in summary
    assert outputs["valid"] == "true"


def test_without_a_baseline_nothing_is_compared(prepared: Path) -> None:
    done, outputs, summary = step(prepared, url="http://127.0.0.1:9", baseline="none-yet")
    assert done.returncode == 0
    assert "::notice title=wattload::no baseline in none-yet: nothing was compared" in done.stdout
    assert "### Against the baseline" not in summary
    assert outputs["run"] == "wattload-run"
