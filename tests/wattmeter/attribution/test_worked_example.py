"""The worked example of docs/explanation/attribution.md: computed again by wattmeter."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from meter_fakes import MS, batch
from wattmeter.attribution.split import attribute, entry_joules, stall_share
from wattmeter.energy_model.step_model import StepModel

PAGE = Path(__file__).resolve().parents[3] / "docs" / "explanation" / "attribution.md"
SECTION = PAGE.read_text("utf-8").split("## A worked example", 1)[-1].split("\n## ", 1)[0]


def number(pattern: str) -> float:
    """The one number of the section that the group of `pattern` finds."""
    (found,) = set(re.findall(pattern, SECTION))
    return float(found.rstrip("."))


def table(first_cell: str) -> dict[str, list[float]]:
    """The numbers of the table whose head begins with `first_cell`, by the first cell of each row."""
    text = SECTION.split(f"| {first_cell} |", 1)[1].split("\n\n", 1)[0]
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines()[2:]]
    return {row[0]: [float(cell.split(" ")[0]) for cell in row[1:]] for row in rows}


MODEL = StepModel(
    fixed_joules=number(r"\| fixed \| ([\d.]+) J"),
    prefill_token_joules=number(r"\| a prompt token \| ([\d.]+) J"),
    decode_token_joules=number(r"\| a generated token \| ([\d.]+) J"),
    context_token_joules=0.0,
    fixed_seconds=number(r"\| fixed \| [\d.]+ J \| ([\d.]+) ms") / 1e3,
    prefill_token_seconds=number(r"\| a prompt token \| [\d.]+ J \| ([\d.]+) ms") / 1e3,
)
PROMPT = int(number(r"prompt of (\d+) tokens"))
FIRST = [("X", PROMPT, 0, 0), ("Y", 0, 1, 0), ("Z", 0, 1, 0)]
SECOND = [("X", 0, 1, 0), ("Y", 0, 1, 0), ("Z", 0, 1, 0)]
STEPS = batch([(0, 15 * MS, FIRST), (15 * MS, 20 * MS, SECOND)])
EDGES = np.array([0, 20 * MS])
ABOVE_IDLE = number(r"\*\*([\d.]+) J\*\* are above idle")


def test_the_steps_cost_and_take_what_the_page_says() -> None:
    steps = MODEL.work(STEPS, None).steps
    joules, seconds = MODEL.step_joules(steps), MODEL.step_seconds(steps)
    for step, name in enumerate(("step 1", "step 2")):
        assert table("step")[name] == pytest.approx([joules[step], 1e3 * seconds[step]], abs=1e-9)
    assert number(r"P = ([\d.]+) W") == pytest.approx(MODEL.fixed_joules / MODEL.fixed_seconds)
    assert number(r"counter rose by ([\d.]+) J") == pytest.approx(
        ABOVE_IDLE + number(r"idle power is ([\d.]+) W") * 0.020
    )


def test_the_shares_are_those_of_the_split() -> None:
    concurrency = number(r"A = ([\d.]+) requests")
    k = stall_share(concurrency)
    assert number(r"k = ([\d.]+)") == pytest.approx(k, abs=5e-4)
    prefill, decode = entry_joules(MODEL.work(STEPS, None), MODEL, concurrency=concurrency)
    entries = (prefill + decode).reshape(2, 3)
    split = attribute(STEPS, EDGES, np.array([ABOVE_IDLE]), MODEL)
    rows = table("request")
    assert list(rows) == ["X", "Y", "Z", "sum"]
    for place, name in enumerate("XYZ"):
        whole = entries[:, place].sum()
        expected = [*entries[:, place], whole, split.request_joules[place]]
        assert rows[name] == pytest.approx(expected, abs=5.1e-4), name
    sums = [*entries.sum(axis=1), entries.sum(), ABOVE_IDLE]
    assert rows["sum"] == pytest.approx(sums, abs=5.1e-4)
    assert number(r"scaled by ([\d.]+)") == pytest.approx(split.scale[0], abs=5e-4)


def test_equal_shares_are_as_the_page_compares() -> None:
    third = number(r"equal shares would give each ([\d.]+) J")
    assert third == pytest.approx(ABOVE_IDLE / 3, abs=5e-3)
