"""What docs/findings.md says of studies is what the kept cells say, computed again from their run.json."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from statistics import fmean, geometric_mean
from typing import Any

import pyarrow.parquet as pq
import pytest

from markdown_tables import tables
from wattload.study.effects import Effect, Estimate
from wattload.study.levels import parse_level
from wattload.study.results import Results
from wattload.study.spec import load_study

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "studies" / "results"
PAGE = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")
LEVELS = {"one at a time": "closed-1", "2 per second": "2", "8 per second": "8", "1 per second": "1"}
STACKS = {
    "Transformers": "transformers",
    "Transformers, continuous batching": "transformers-batching",
    "vLLM, eager": "vllm-eager",
    "vLLM, eager (second server)": "vllm-graphs",
    "vLLM, compiled, with CUDA graphs": "vllm",
}
PRECISIONS = {"bf16": "bf16", "fp8 weights": "fp8", "fp8 weights and cache": "fp8-cache"}
ONLINE = {
    "one batch of 16, all at once": "batch:16",
    "one batch of 64, all at once": "batch:64",
    "25 % of capacity": "25%",
    "50 %": "50%",
    "all 200 at once": "offline:200",
    "80 %, not steady": "80%",
}
EXPERTS = {"dense, 1.2 B": "olmo-1b", "mixture, 1.3 of 6.9 B": "olmoe-1b-7b", "dense, 6.9 B": "olmo-7b"}
DECODINGS = {"plain": "plain", "n-gram, all of it accepted": "ngram"}
PER_TOKEN, PER_REQUEST = "energy.per_output_token_joules", "energy.per_request_joules.mean"
LATENCY = "latency.e2e_seconds.mean"
LIMITS = {"8": "seqs-8", "64": "seqs-64", "the engine's own limit": "default"}


@pytest.fixture
def step_costs(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    import step_costs

    return step_costs.step_costs


def table(section: str, number: int = 0) -> list[list[str]]:
    """The rows of a table of a section of the page, its head first."""
    return tables(PAGE.split(f"## {section}")[1].split("\n## ")[0])[number]


def first_number(cell: str) -> float:
    found = re.match(r"[\d,.]*\d", cell)
    assert found is not None, cell
    return float(found[0].replace(",", ""))


def run_of(study: str, arm: str, level: str, repeat: int = 1, workload: str = "conv") -> dict[str, Any]:
    path = KEPT / study / "cells" / arm / f"{workload}-{level}-r{repeat}" / "run.json"
    return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def results_of(study: str, tmp_path: Path) -> Results:
    folder = tmp_path / study
    shutil.copytree(KEPT / study, folder)
    return Results.of(load_study(folder / "study.toml", traces=False), folder)


def assert_quoted(effect: Effect, quoted: str) -> None:
    """The page says an effect in these words: how many times as much, or per cent more or less."""
    assert effect.low is not None
    assert effect.high is not None
    found = [effect.ratio, effect.low, effect.high]
    if "times" not in quoted:
        found = [100 * (value - 1) for value in found]
        if found[0] < -1:
            found = [-found[0], -found[2], -found[1]]
    assert numbers(quoted) == pytest.approx(found, abs=0.06 if "." in quoted else 0.6)
    assert quoted in PAGE.replace("\n", " ")


def numbers(text: str) -> list[float]:
    return [float(value) for value in re.findall(r"-?\d[\d.]*", text)]


@pytest.mark.parametrize(
    ("section", "study", "arms"),
    [
        ("Software (measured, one run of each)", "software-h100", STACKS),
        ("Batching (measured, one run of each)", "batching-h100", LIMITS),
    ],
)
def test_energy_per_output_token_of_every_cell(section: str, study: str, arms: dict[str, str]) -> None:
    head, *rows = table(section)
    assert len(rows) == len(arms)
    for row in rows:
        for name, cell in zip(head[1:4], row[1:4], strict=True):
            level = LEVELS.get(name, "24")
            found = run_of(study, arms[row[0]], level)["energy"]["per_output_token_joules"]
            assert first_number(cell) == pytest.approx(found, rel=5e-3), (row[0], name)


def test_precision_over_its_two_repeats(tmp_path: Path) -> None:
    results = results_of("precision-h200", tmp_path)
    head, *rows = table("Precision (measured, two repeats)")
    assert [row[0] for row in rows] == list(PRECISIONS)
    for row in rows:
        runs = {
            level: [run_of("precision-h200", PRECISIONS[row[0]], LEVELS.get(level, "24"), n) for n in (1, 2)]
            for level in head[1:4]
        }
        for level, cell in zip(head[1:4], row[1:4], strict=True):
            found = geometric_mean(run["energy"]["per_output_token_joules"] for run in runs[level])
            assert first_number(cell) == pytest.approx(found, rel=5e-3), (row[0], level)
            steady = results.steady(PRECISIONS[row[0]], "conv", f"{LEVELS.get(level, '24')}/s")
            assert ("not steady" in cell) == (not steady), (row[0], level)
        tpot = [geometric_mean(run["latency"]["tpot_seconds"]["p50"] for run in own) for own in runs.values()]
        assert numbers(row[4]) == pytest.approx([1e3 * value for value in tpot], rel=0.015)


def test_online_beside_fixed_batches(tmp_path: Path) -> None:
    _, *rows = table("Online beside fixed batches (measured, three repeats)")
    assert [row[0] for row in rows] == list(ONLINE)
    results = results_of("online-h200", tmp_path)

    def found(number: str, level: str) -> Estimate:
        estimate = results.estimate(number, "vllm", "conv", level)
        assert estimate is not None
        assert estimate.repeats == 3
        return estimate

    for name, token, request, power, tpot in rows:
        level = ONLINE[name]
        for cell, number in (
            (token, "energy.per_output_token_joules"),
            (request, "energy.per_request_joules.mean"),
        ):
            estimate = found(number, level)
            assert numbers(cell) == pytest.approx([estimate.value, estimate.low, estimate.high], rel=5e-3)
        watts = [
            run_of("online-h200", "vllm", parse_level(level, 28).slug, n)["energy"]["mean_watts"]
            for n in (1, 2, 3)
        ]
        assert first_number(power) == pytest.approx(fmean(watts), abs=0.6)
        assert first_number(tpot) == pytest.approx(
            1e3 * found("latency.tpot_seconds.p50", level).value, rel=0.01
        )
        assert ("not steady" in name) == (not results.steady("vllm", "conv", level))


def test_classic_tasks(tmp_path: Path) -> None:
    _, *rows = table("Workloads and classic tasks (measured, one run of each)")
    results = results_of("workloads-h200", tmp_path)
    assert 3 * len(rows) == len(list((KEPT / "workloads-h200").glob("cells/*/*/run.json")))
    named = {"conversations": "conv", "code completions": "code", "text generation": "generation"}
    for task, *cells in rows:
        name = task.partition(",")[0]
        workload = named.get(name, name)
        for rate, cell in zip((2, 8, 20), cells, strict=False):
            assert_joules_per_request(results, "vllm", workload, f"{rate}/s", cell)
        run = run_of("workloads-h200", "vllm", "20", workload=workload)
        assert first_number(cells[3]) == pytest.approx(run["energy"]["mean_watts"], abs=0.6)


def assert_joules_per_request(results: Results, arm: str, workload: str, level: str, cell: str) -> None:
    """A cell of the page's tables: value, interval, and whether the run was not steady."""
    estimate = results.estimate("energy.per_request_joules.mean", arm, workload, level)
    assert estimate is not None
    quoted, _, steady = cell.partition("]")
    assert numbers(quoted) == pytest.approx([estimate.value, estimate.low, estimate.high], rel=7e-3)
    assert (steady == ", not steady") == (not results.steady(arm, workload, level)), (arm, workload, level)


@pytest.mark.parametrize(
    ("section", "study", "arms", "rates"),
    [
        ("Mixture of experts (measured, one run of each)", "experts-h200", EXPERTS, ("2", "8", "32")),
        (
            "Speculative decoding (measured in part, one run of each)",
            "decoding-h200",
            DECODINGS,
            ("2", "8", "24"),
        ),
    ],
)
def test_arms_by_rate(
    tmp_path: Path, section: str, study: str, arms: dict[str, str], rates: tuple[str, ...]
) -> None:
    _, *rows = table(section)
    assert [row[0] for row in rows] == list(arms)
    results = results_of(study, tmp_path)
    for name, *cells, tpot in rows:
        arm = arms[name]
        for rate, cell in zip(rates, cells, strict=True):
            assert_joules_per_request(results, arm, "conv", f"{rate}/s", cell)
        found = [1e3 * run_of(study, arm, rate)["latency"]["tpot_seconds"]["p50"] for rate in rates]
        assert numbers(tpot) == pytest.approx(found, rel=0.03)
    kept = {path.parent.parent.name for path in (KEPT / study).glob("cells/*/*/run.json")}
    assert kept == set(arms.values())


def test_two_gpus_for_one_model(tmp_path: Path) -> None:
    _, *rows = table("Two GPUs for one model (measured in part, one run of each)")
    results = results_of("parallelism-h200", tmp_path)
    for (_, *cells, power), arm in zip(rows, ("tp-1", "tp-2"), strict=True):
        for rate, joules, latency in zip(("2", "8", "24"), cells[::2], cells[1::2], strict=True):
            assert_joules_per_request(results, arm, "conv", f"{rate}/s", joules)
            run = run_of("parallelism-h200", arm, rate)
            assert first_number(latency) == pytest.approx(run["latency"]["e2e_seconds"]["mean"], abs=6e-3)
            assert len(run["target"]["devices"]) == int(arm[-1])
        assert first_number(power) == pytest.approx(run["energy"]["mean_watts"], abs=0.6)


def test_what_lookup_proposed_was_accepted() -> None:
    """Random weights repeat themselves: the arm shows the most that n-gram lookup could save."""
    shares, sizes = [], []
    for path in (KEPT / "decoding-h200").glob("cells/ngram/*/server_metrics.parquet"):
        rows = pq.read_table(path).to_pydict()
        spans: dict[str, list[float]] = {}
        for metric, value in zip(rows["metric"], rows["value"], strict=True):
            spans.setdefault(metric.removeprefix("vllm:spec_decode_num_"), []).append(value)
        grown = {name: values[-1] - values[0] for name, values in spans.items()}
        shares.append(100 * grown["accepted_tokens_total"] / grown["draft_tokens_total"])
        sizes.append(grown["draft_tokens_total"] / grown["drafts_total"])
    assert len(shares) == 3
    assert (round(min(shares), 1), round(max(shares), 1)) == (99.5, 100.0)
    assert sizes == pytest.approx([3.95] * 3, abs=6e-3)
    assert "(99.5 to 100 %; 3.95 of at most 4 tokens each time)" in PAGE


@pytest.mark.parametrize(
    ("level", "quoted"),
    [
        ("batch:16", "2.7 times as much [2.1, 3.4]"),
        ("batch:64", "55 % [21, 99] more"),
        ("25%", "2.3 times as much [1.8, 3.0]"),
        ("50%", "28 % [-1, 64] more"),
        ("80%", "11 % [-15, 30] less"),
    ],
)
def test_online_against_all_at_once(tmp_path: Path, level: str, quoted: str) -> None:
    results = results_of("online-h200", tmp_path)
    question = next(q for q in results.study.file.questions if q.number == PER_TOKEN)
    (effect,) = (s.effect for s in results.level_savings(question) if s.level.text == level)
    assert effect is not None
    assert_quoted(effect, quoted)


def test_what_was_cut_short_is_not_kept() -> None:
    for path in KEPT.glob("*/cells/*/*/run.json"):
        run = json.loads(path.read_text(encoding="utf-8"))
        if run["workload"]["arrivals"]["process"] == "offline":
            assert "aborted" not in run["requests"]["failed"], path


@pytest.mark.parametrize(
    ("section", "number", "study", "cell", "arms"),
    [
        ("Software (measured, one run of each)", 1, "software-h100", "conv-2-r1", STACKS),
        ("Precision (measured, two repeats)", 1, "precision-h200", "conv-8-r1", PRECISIONS),
    ],
)
def test_what_a_step_costs(
    step_costs: Any, section: str, number: int, study: str, cell: str, arms: dict[str, str]
) -> None:
    _, *rows = table(section, number)
    assert len(rows) == 3
    for row in rows:
        of = step_costs(KEPT / study / "cells" / arms[row[0]] / cell)
        quoted = [first_number(cell) for cell in row[1:]]
        found = [of.steps_per_second, of.requests_running, of.decode_joules_per_step, of.mean_watts]
        assert quoted == pytest.approx(found, rel=0.015)


def test_two_kinds_of_gpus_at_the_same_requests(step_costs: Any) -> None:
    _, *rows = table("H100 beside H200 (measured, one run of each)")
    kept = {"H100": ("batching-h100", "default"), "H200": ("precision-h200", "bf16")}
    assert [row[0] for row in rows] == list(kept)
    schedules = set()
    for name, *cells in rows:
        study, arm = kept[name]
        eight, full = (run_of(study, arm, level) for level in ("8", "24"))
        of = step_costs(KEPT / study / "cells" / arm / "conv-8-r1")
        assert numbers(cells[1]) == pytest.approx([of.steps_per_second, of.requests_running], rel=0.015)
        for run, (token, power, tpot) in ((eight, (cells[0], *cells[2:4])), (full, cells[4:])):
            assert first_number(token) == pytest.approx(run["energy"]["per_output_token_joules"], rel=5e-3)
            assert first_number(power) == pytest.approx(run["energy"]["mean_watts"], abs=0.6)
            assert first_number(tpot) == pytest.approx(1e3 * run["latency"]["tpot_seconds"]["p50"], abs=0.06)
            assert next(device["name"] for device in run["target"]["devices"]).startswith(f"NVIDIA {name}")
        schedules.add(tuple(run["workload"]["schedule_sha256"] for run in (eight, full)))
    assert len(schedules) == 1, "the same requests at the same times"


@pytest.mark.parametrize(
    ("study", "number", "arm", "against", "level", "quoted"),
    [
        ("software-h100", PER_TOKEN, "vllm", "transformers", "closed:1", "73 % [51, 85]"),
        ("software-h100", PER_TOKEN, "vllm", "vllm-eager", "2/s", "44 % [5, 99]"),
        ("software-h100", PER_TOKEN, "vllm", "vllm-eager", "8/s", "19 % [-7, 52]"),
        ("software-h100", PER_TOKEN, "vllm-graphs", "vllm-eager", "2/s", "0.3 % [-0.7, 1.4]"),
        ("batching-h100", PER_TOKEN, "seqs-64", "default", "24/s", "20 % [11, 29]"),
        ("batching-h100", PER_TOKEN, "seqs-8", "default", "8/s", "58 % [18, 112]"),
        ("precision-h200", PER_REQUEST, "fp8", "bf16", "2/s", "22 % [17, 27]"),
        ("precision-h200", PER_REQUEST, "fp8", "bf16", "8/s", "16 % [14, 17]"),
        ("precision-h200", PER_REQUEST, "fp8", "bf16", "24/s", "4 % [-6, 13]"),
        ("precision-h200", PER_REQUEST, "fp8-cache", "bf16", "2/s", "25 % [20, 30]"),
        ("precision-h200", PER_REQUEST, "fp8-cache", "bf16", "8/s", "23 % [21, 24]"),
        ("precision-h200", PER_REQUEST, "fp8-cache", "bf16", "24/s", "17 % [8, 24]"),
        ("experts-h200", PER_REQUEST, "olmoe-1b-7b", "olmo-1b", "2/s", "13 % [-30, 82]"),
        ("experts-h200", PER_REQUEST, "olmoe-1b-7b", "olmo-1b", "8/s", "52 % [40, 64]"),
        ("experts-h200", PER_REQUEST, "olmoe-1b-7b", "olmo-1b", "32/s", "33 % [19, 49]"),
        ("experts-h200", PER_REQUEST, "olmoe-1b-7b", "olmo-7b", "2/s", "40 % [25, 52]"),
        ("experts-h200", PER_REQUEST, "olmoe-1b-7b", "olmo-7b", "8/s", "22 % [13, 29]"),
        ("decoding-h200", PER_REQUEST, "ngram", "plain", "2/s", "31 % [14, 46]"),
        ("decoding-h200", PER_REQUEST, "ngram", "plain", "8/s", "12 % [2, 21]"),
        ("decoding-h200", PER_REQUEST, "ngram", "plain", "24/s", "4 % [-8, 15]"),
        ("parallelism-h200", PER_REQUEST, "tp-2", "tp-1", "2/s", "52 % [39, 67]"),
        ("parallelism-h200", PER_REQUEST, "tp-2", "tp-1", "8/s", "55 % [51, 60]"),
        ("parallelism-h200", PER_REQUEST, "tp-2", "tp-1", "24/s", "63 % [38, 92]"),
        ("parallelism-h200", LATENCY, "tp-2", "tp-1", "2/s", "22 % [20, 24]"),
        ("parallelism-h200", LATENCY, "tp-2", "tp-1", "8/s", "27 % [23, 30]"),
        ("parallelism-h200", LATENCY, "tp-2", "tp-1", "24/s", "63 % [54, 70]"),
    ],
)
def test_differences_with_their_intervals(
    tmp_path: Path, study: str, number: str, arm: str, against: str, level: str, quoted: str
) -> None:
    results = results_of(study, tmp_path)
    question = next(
        q
        for q in results.study.file.questions
        if q.number == number
        and not q.against_rate
        and arm in (q.arms or [arm])
        and (q.against or results.study.baseline) == against
    )
    (effect,) = (
        s.effect
        for s in results.arm_savings(question)
        if (s.arm, s.level.text) == (arm, level) and s.workload == "conv"
    )
    assert effect is not None
    assert_quoted(effect, quoted)
    if study == "precision-h200":
        significant = level != "24/s" or arm == "fp8-cache"
        assert effect.significant is significant


def test_the_arm_that_was_to_have_graphs_is_named_as_what_it_was() -> None:
    """With `-cc.mode=0` alone vLLM takes no graph; the shipped study asks for them."""
    assert "-cc.cudagraph_mode=FULL" in (ROOT / "studies" / "software.toml").read_text()
    assert "-cc.cudagraph_mode" not in (KEPT / "software-h100" / "study.toml").read_text()
    assert "had no CUDA graphs" in (KEPT / "README.md").read_text()
