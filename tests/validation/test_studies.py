"""What docs/findings.md says of studies is what the kept cells say, computed again from their run.json."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from markdown_tables import tables
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


def run_of(study: str, arm: str, level: str) -> dict[str, Any]:
    path = KEPT / study / "cells" / arm / f"conv-{level}-r1" / "run.json"
    return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


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


def test_what_a_step_costs(step_costs: Any) -> None:
    _, *rows = table("Software (measured, one run of each)", 1)
    assert len(rows) == 3
    for row in rows:
        of = step_costs(KEPT / "software-h100" / "cells" / STACKS[row[0]] / "conv-2-r1")
        quoted = [first_number(cell) for cell in row[1:]]
        found = [of.steps_per_second, of.requests_running, of.decode_joules_per_step, of.mean_watts]
        assert quoted == pytest.approx(found, rel=0.015)


@pytest.mark.parametrize(
    ("study", "arm", "against", "level", "quoted"),
    [
        ("software-h100", "vllm", "transformers", "closed:1", "73 % [51, 85]"),
        ("software-h100", "vllm", "vllm-eager", "2/s", "44 % [5, 99]"),
        ("software-h100", "vllm", "vllm-eager", "8/s", "19 % [-7, 52]"),
        ("software-h100", "vllm-graphs", "vllm-eager", "2/s", "0.3 % [-0.7, 1.4]"),
        ("batching-h100", "seqs-64", "default", "24/s", "20 % [11, 29]"),
        ("batching-h100", "seqs-8", "default", "8/s", "58 % [18, 112]"),
    ],
)
def test_differences_with_their_intervals(
    tmp_path: Path, study: str, arm: str, against: str, level: str, quoted: str
) -> None:
    folder = tmp_path / study
    shutil.copytree(KEPT / study, folder)
    results = Results.of(load_study(folder / "study.toml", traces=False), folder)
    question = next(
        q
        for q in results.study.file.questions
        if q.number == "energy.per_output_token_joules"
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
    assert effect.low is not None
    assert effect.high is not None
    changes = [100 * (value - 1) for value in (effect.ratio, effect.low, effect.high)]
    if changes[0] < -1:
        changes = [-changes[0], -changes[2], -changes[1]]
    said = [float(value) for value in re.findall(r"-?[\d.]+", quoted)]
    assert said == pytest.approx(changes, abs=0.06 if "." in quoted else 0.6)
    assert quoted in PAGE


def test_the_arm_that_was_to_have_graphs_is_named_as_what_it_was() -> None:
    """With `-cc.mode=0` alone vLLM takes no graph; the shipped study asks for them."""
    assert "-cc.cudagraph_mode=FULL" in (ROOT / "studies" / "software.toml").read_text()
    assert "-cc.cudagraph_mode" not in (KEPT / "software-h100" / "study.toml").read_text()
    assert "had no CUDA graphs" in (KEPT / "README.md").read_text()
