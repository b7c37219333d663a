"""The figures that docs/research/validation.md quotes of the H100 are those of the files that are kept."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from markdown_tables import tables

ROOT = Path(__file__).parents[2]
H100 = ROOT / "benchmarks" / "h100"
PAGE = (ROOT / "docs" / "research" / "validation.md").read_text(encoding="utf-8")
SECTION = PAGE.split("### Again, with several API processes")[1].split("\n### ")[0]


@pytest.fixture
def production_load(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks" / "h200"), *sys.path])
    import production_load

    return production_load


@pytest.mark.parametrize(
    ("file", "blocks", "kinds"),
    [
        ("production_load-4.json", 3, ("closed:64", "closed:256", "closed:512")),
        ("production_load-5.json", 5, ("closed:64", "closed:256", "closed:512")),
        ("production_load-6.json", 5, ("closed:8", "poisson:16")),
    ],
)
def test_metered_against_plain_with_several_api_processes(
    production_load: Any, file: str, blocks: int, kinds: tuple[str, ...]
) -> None:
    windows = json.loads((H100 / file).read_text())["windows"]
    for kind in kinds:
        for figure in ("tokens_per_second", "tpot_p50_seconds", "joules_per_token"):
            row = production_load.mean_change(windows, kind, figure, None)
            low, high = (100 * bound for bound in row["ci95"])
            quoted = f"{100 * row['change']:+.1f} % [{low:+.1f}, {high:+.1f}]"
            assert row["blocks"] == blocks
            assert quoted in SECTION, f"{kind} {figure}: {quoted}"


@pytest.mark.parametrize(
    ("file", "column"),
    [("data-parallel-2", 1), ("data-parallel-2-shared", 2), ("tensor-parallel-2", 3)],
)
def test_two_gpus_against_their_own_counters(file: str, column: int) -> None:
    section = PAGE.split("### Two H100s, data parallel")[1].split("\n## ")[0]
    quoted = {row[0]: row[column] for row in tables(section)[0]}
    data = json.loads((H100 / "parallel" / f"{file}.json").read_text())
    figures, counters = data["figures"], data["figures"]["counter_joules"]
    assert not [check for check in data["checks"] if check["name"] == "tokens exact" and not check["ok"]]
    assert quoted["requests, tokens exact"] == f"{figures['requests']} of {figures['requests']}"
    assert quoted["requests of each engine"] == ", ".join(map(str, figures["requests_of_each_engine"]))
    assert quoted["steps, lost"] == f"{figures['steps']:,}, 0"
    joules = {device["id"]: device["joules"] for device in data["energy"]["devices"]}
    each = [100 * (joules[name] / counters[name] - 1) for name in joules]
    total = 100 * (sum(joules.values()) / sum(counters.values()) - 1)
    assert max(map(abs, [*each, total])) < 0.1
    assert quoted["each GPU against its own counter"] == ", ".join(f"{change:+.3f}" for change in each) + " %"
    assert quoted["the total against the sum of both counters"] == f"{total:+.3f} %"


def test_a_mixture_of_experts_by_the_servers_own_answers() -> None:
    """The responses to group_by=tag of the joint runs, against the marginal contributions of the subsets."""
    with gzip.open(H100 / "olmoe" / "coalitions-high.json.gz", "rt") as stream:
        data = json.load(stream)
    answers = data["settled"]["windows"]
    names = [window["name"] for window in data["windows"]]
    joint = [answers[at] for at, name in enumerate(names) if name.startswith("high:code+conv+long")]
    assert len(joint) == 2
    section = PAGE.split("### A mixture of experts, a fresh draw")[1].split("\n### ")[0]
    measured = {"code": 790.0, "conv": 2745.0, "long": 2337.0}
    for answer, row in zip(joint, section.split("group_by=tag`, first")[1].splitlines()[:2], strict=True):
        quoted = [
            float(cell.removesuffix(" %")) for cell in row.split(" | ")[-3:] for cell in [cell.strip(" |")]
        ]
        found = [100 * (answer["groups"][name] / joules - 1) for name, joules in measured.items()]
        assert quoted == pytest.approx(found, abs=0.15)


def test_estimates_from_streams_beside_a_live_engine() -> None:
    page = (ROOT / "docs" / "explanation" / "attribution.md").read_text(encoding="utf-8")
    quoted = tables(page.split("Beside a live engine")[1].split("\n## ")[0])[0]
    rows = []
    for number in (1, 2, 3):
        data = json.loads((H100 / "streams" / f"live-{number}.json").read_text())
        assert not data["simulated"]
        assert not data["without_joules"]
        joules = data["joules"]
        assert abs(joules["estimated"] / joules["step_records"] - 1) < 3e-4
        assert data["request_error"]["within_two_deviations"] > 0.99
        for tenant in ("conv", "code", "chat"):
            found = data["tenants"][tenant]
            assert abs(found["estimated from streams"]) < 0.15
            rules = (found[name] for name in ("estimated from streams", "equal shares", "token shares"))
            changes = [f"{100 * change:+.1f} %" for change in rules]
            rows.append([str(found["requests"]), f"{found['joules']:,.0f} J", *changes])
    assert [list(row[2:]) for row in quoted if row[1] in ("conv", "code", "chat")] == rows
