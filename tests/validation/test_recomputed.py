"""Every headline of run.json comes out of the Parquet files again, by code that shares nothing with ours."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path

import pytest

import recompute
from shared import shared_file
from synthetic_run import Synthetic
from wattload.analysis.compute import finish
from wattload.analysis.options import parse_slo
from wattload.rundir.directory import RunDir

ROOT = Path(__file__).resolve().parents[2]
KEPT = sorted(path.parent for path in ROOT.glob("benchmarks/*/results/**/run.json"))


@pytest.mark.parametrize("folder", KEPT, ids=lambda folder: folder.name)
def test_a_kept_run_of_a_gpu(folder: Path) -> None:
    assert recompute.mismatches(folder) == []


@pytest.mark.parametrize("folder", KEPT, ids=lambda folder: folder.name)
def test_its_run_json_is_what_todays_code_computes(folder: Path, tmp_path: Path) -> None:
    """Intervals too, which `recompute` has not: a kept run is computed again when the statistics change."""
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy)
    kept = json.loads((copy / "run.json").read_text())
    finish(RunDir.open(copy))
    for section in ("energy", "latency", "load", "requests", "tokens"):
        assert flat(json.loads((copy / "run.json").read_text())[section]) == pytest.approx(
            flat(kept[section]), rel=1e-9, abs=1e-12, nan_ok=True
        )
    shutil.rmtree(copy)


@pytest.mark.parametrize("trace", ["conv", "code"])
def test_the_tables_of_rates_have_the_intervals_of_the_kept_runs(trace: str) -> None:
    results = ROOT / "benchmarks" / "h200" / "results"
    rows = json.loads((results / f"rates-{trace}.json").read_text())["rows"]
    assert len(rows) >= 6
    for row in rows:
        run = json.loads((results / "estimates" / f"{trace}-{row['planned_rps']:g}" / "run.json").read_text())
        assert row["per_request_joules"] == run["energy"]["per_request_joules"]
        assert row["interval_method"] == run["energy"]["statistics"]["method"]


def flat(value: object, path: str = "") -> dict[str, float]:
    """The numbers below `value`, by path."""
    if isinstance(value, dict | list):
        inside = value.items() if isinstance(value, dict) else enumerate(value)
        return {name: found for key, each in inside for name, found in flat(each, f"{path}.{key}").items()}
    return {path: float(value)} if isinstance(value, int | float) else {}


def test_there_are_kept_runs() -> None:
    assert len(KEPT) >= 13


def test_the_kept_run_of_a_mixture_of_experts() -> None:
    assert recompute.mismatches(shared_file("h100/olmoe/run-conv-6/run.json").parent) == []


@pytest.mark.parametrize(
    "maker",
    [
        Synthetic(slo=parse_slo("ttft=60ms,tpot=20ms"), failed=0.1, tags=("a", "b")),
        Synthetic(meter_offset_seconds=3.0, gaps=False),
        Synthetic(with_answer=False),
        Synthetic(rate=0.3, duration=40.0),
        Synthetic(warmup=None),
    ],
    ids=["limits", "clock", "series", "few", "warmup"],
)
def test_a_run_whose_truth_is_known(tmp_path: Path, maker: Synthetic) -> None:
    run = maker.write(tmp_path / "run")
    finish(run)
    assert recompute.mismatches(run.path) == []


def test_a_number_that_is_wrong_is_found(tmp_path: Path) -> None:
    """Each headline, changed by a millionth."""
    run = Synthetic(slo=parse_slo("ttft=60ms")).write(tmp_path / "run")
    finish(run)
    good = json.loads(run.run_json_path.read_text())
    paths = [path for path, value in recompute.headlines(run.path, good).items() if value]
    assert len(paths) > 45
    for path in paths:
        changed = json.loads(json.dumps(good))
        section = changed
        *above, name = path.split(".")
        for part in above:
            section = section[part]
        section[name] *= 1 + 1e-6
        run.run_json_path.write_text(json.dumps(changed))
        assert any(path in sentence for sentence in recompute.mismatches(run.path)), path
    shutil.rmtree(run.path)


def test_joules_that_the_counters_do_not_show_are_found(tmp_path: Path) -> None:
    run = Synthetic().write(tmp_path / "run")
    finish(run)
    told = json.loads(run.run_json_path.read_text())
    told["energy"]["total_joules"] *= 1.02
    run.run_json_path.write_text(json.dumps(told))
    assert any("beyond what the counters say" in sentence for sentence in recompute.mismatches(run.path))
    shutil.rmtree(run.path)


def test_it_shares_no_code_with_the_product_and_is_short() -> None:
    source = Path(recompute.__file__).read_text("utf-8")
    assert len(source.splitlines()) <= 120
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            imported |= {name.split(".")[0] for name in names}
    assert imported == {"functools", "json", "math", "sys", "pathlib", "typing", "numpy", "pyarrow"}


def test_the_command_ends_with_1_where_a_run_is_wrong(tmp_path: Path) -> None:
    import subprocess
    import sys

    copy = tmp_path / "run"
    shutil.copytree(KEPT[0], copy)
    command = [sys.executable, recompute.__file__, str(copy)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    told = json.loads((copy / "run.json").read_text())
    told["energy"]["mean_watts"] += 1.0
    (copy / "run.json").write_text(json.dumps(told))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "energy.mean_watts" in done.stderr
    shutil.rmtree(copy)
