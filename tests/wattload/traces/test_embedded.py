"""The embedded workloads are near the traces they describe, and are no copies of them."""

from __future__ import annotations

import json
from importlib import resources

import numpy as np
import pytest
from scipy import stats

from shared import shared_file
from wattload import traces
from wattload.traces import embedded as workloads
from wattload.traces.trace import Trace

# Those of Azure's traces; `agent` has tests of its own.
AZURE = ("conv", "code")
BOTH = pytest.mark.parametrize("name", AZURE)


def real(name: str) -> Trace:
    return traces.load(shared_file("traces", f"AzureLLMInferenceTrace_{name}.csv"))


def dispersion(seconds: np.ndarray, width: float) -> float:
    """Variance over mean of the counts in windows of `width`: 1 for a Poisson process."""
    counts = np.histogram(seconds, np.arange(0, seconds[-1], width))[0]
    return float(counts.var() / counts.mean())


@BOTH
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_lengths_are_near_the_trace(name: str, seed: int) -> None:
    trace, drawn = real(name), workloads.load(name).sample(40_000, seed)
    for ours, theirs in (
        (drawn.prompt_tokens, trace.prompt_tokens),
        (drawn.output_tokens, trace.output_tokens),
    ):
        assert float(stats.ks_2samp(ours, theirs).statistic) <= 0.03
        assert ours.mean() == pytest.approx(theirs.mean(), rel=0.04)
    rank = [float(stats.spearmanr(t.prompt_tokens, t.output_tokens).statistic) for t in (drawn, trace)]
    assert abs(rank[0] - rank[1]) <= 0.05
    total = [(t.prompt_tokens + t.output_tokens).mean() for t in (drawn, trace)]
    assert total[0] == pytest.approx(total[1], rel=0.03)


@BOTH
def test_burstiness_is_near_the_trace_at_every_time_scale(name: str) -> None:
    trace, workload = real(name), workloads.load(name)
    drawn = [workload.sample(workload.rows, seed).seconds for seed in range(8)]
    for width in (0.1, 1.0, 10.0):
        ours = np.mean([dispersion(seconds, width) for seconds in drawn])
        assert ours / dispersion(trace.seconds, width) == pytest.approx(1, abs=0.45), width


@BOTH
def test_the_file_cites_its_source_and_holds_no_rows(name: str) -> None:
    text = (resources.files("wattload.traces.embedded") / f"{name}.json").read_text()
    data = json.loads(text)
    assert data["licence"] == "CC-BY 4.0"
    assert "Splitwise" in data["citation"]
    assert len(text) < 8_000
    assert max(len(v) for v in data["lengths"].values()) < 250


@BOTH
def test_a_longer_sample_begins_with_the_shorter_one(name: str) -> None:
    workload = workloads.load(name)
    short, long = workload.sample(1000, 4), workload.sample(30_000, 4)
    for column in ("seconds", "prompt_tokens", "output_tokens"):
        np.testing.assert_array_equal(getattr(short, column), getattr(long, column)[:1000])
    assert (np.diff(long.seconds) >= 0).all()
    assert long.prompt_tokens.min() >= 1
    assert long.output_tokens.min() >= 1
    assert not np.array_equal(short.seconds, workload.sample(1000, 5).seconds)
    assert len(workload.sample(0)) == 0


def test_the_script_that_fits_them_gives_what_is_embedded(tmp_path: object) -> None:
    import importlib.util
    from pathlib import Path

    path = Path(__file__).resolve().parents[3] / "benchmarks/fit_workloads.py"
    spec = importlib.util.spec_from_file_location("fit_workloads", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in AZURE:
        fitted = module.fit(name, shared_file("traces", f"AzureLLMInferenceTrace_{name}.csv"))
        embedded = json.loads((resources.files("wattload.traces.embedded") / f"{name}.json").read_text())
        assert json.loads(json.dumps(fitted)) == embedded
