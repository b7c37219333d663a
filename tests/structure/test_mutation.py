"""The mutants of `make mutation`: what is changed, what never is, and how the score is summed."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks" / "mutation"))

from mutants import Mutant, mutants, mutated
from score import CORE, KILLED, MODULES, SURVIVED, TOO_LONG, Verdict, choose, interval, table

TEXT = '''"""A text."""

from math import inf

LIMIT = 2.0


class Thing:
    """Another."""

    def least(self, a: "int", b: int = 3) -> "float":
        """And another."""
        if a < b and not self:
            raise ValueError(f"no {a + 1}")
        return min(a, b) + 0.5


TOLD = "a text with spaces"
'''


@pytest.fixture
def module(tmp_path: Path) -> Path:
    path = tmp_path / "thing.py"
    path.write_text(TEXT)
    return path


def test_each_change_is_one_and_texts_are_left_alone(module: Path) -> None:
    assert [mutant.change for mutant in mutants(module)] == [
        "2.0  ->  4.0",
        "3  ->  4",
        "a < b and (not self)  ->  a < b or not self",
        "a < b and (not self)  ->  not self",
        "a < b and (not self)  ->  a < b",
        "a < b and (not self)  ->  not (a < b and (not self))",
        "a < b  ->  a <= b",
        "a < b  ->  a >= b",
        "not self  ->  self",
        "raise ValueError(f'no {a + 1}')  ->  pass",
        "return min(a, b) + 0.5  ->  return None",
        "min(a, b) + 0.5  ->  min(a, b) - 0.5",
        "min(a, b)  ->  max(a, b)",
        "0.5  ->  1.0",
    ]


def test_a_mutant_knows_its_statement_and_its_function(module: Path) -> None:
    by_change = {mutant.change: mutant for mutant in mutants(module)}
    assert by_change["2.0  ->  4.0"].function_line is None
    assert by_change["3  ->  4"].function_line is None  # a default is bound when the class is made
    assert by_change["not self  ->  self"].lines == (13, 13)
    assert by_change["0.5  ->  1.0"].function_line == 11
    changed = ast.unparse(mutated(by_change["min(a, b)  ->  max(a, b)"]))
    assert changed == ast.unparse(ast.parse(TEXT.replace("min(a", "max(a")))


@pytest.mark.parametrize("name", MODULES)
def test_mutants_of_the_core_can_be_compiled(name: str) -> None:
    found = mutants(CORE / f"{name}.py")
    original = ast.unparse(ast.parse((CORE / f"{name}.py").read_text("utf-8")))
    for mutant in found[:: max(len(found) // 8, 1)]:
        tree = mutated(mutant)
        compile(tree, "changed", "exec")
        assert ast.unparse(tree) != original


def test_a_larger_sample_begins_with_the_smaller_one() -> None:
    few, all_of = choose(["steps/busy", "steps/queue"], 5, seed=3)
    more, _ = choose(["steps/busy", "steps/queue"], 9, seed=3)
    assert (len(few), len(more)) == (10, 18)
    assert more[:5] == few[:5]
    assert more[9:14] == few[5:]
    assert choose(["steps/busy"], 5, seed=4)[0] != few[:5]
    assert len(choose(["steps/busy"], 0, seed=3)[0]) == all_of["steps/busy"]


def test_the_score_weighs_modules_with_their_mutants() -> None:
    def of(name: str, *outcomes: str) -> list[Verdict]:
        return [Verdict(Mutant(CORE / f"{name}.py", 0, 0, 1, (1, 1), 1, ""), outcome) for outcome in outcomes]

    verdicts = of("steps/busy", KILLED, TOO_LONG, SURVIVED, KILLED) + of("steps/queue", SURVIVED, KILLED)
    rows = table(verdicts, {"steps/busy": 300, "steps/queue": 100}).splitlines()
    assert rows[2].startswith("| `steps/busy.py` | 300 | 4 | 3 | 1 | 1 | 75 % |")
    assert rows[-1].startswith("| **the core** | 400 | 6 | 4 | 1 | 2 | **68.8 %** |")
    low, high = interval(45, 50)
    assert (low, high) == pytest.approx((0.786, 0.957), abs=0.001)
