"""The list of numbers: complete, unambiguous, and what every table takes its words from."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from synthetic_run import Synthetic
from wattload.analysis.compare import COMPARED
from wattload.analysis.compute import finish
from wattload.rundir.numbers import NUMBERS, groups, number_of, why_null
from wattload.sweep.search import POINT_NUMBERS

# Figures that stand beside a number (how many values it is of, or another's settings).
NOT_LISTED = {
    "energy.per_request_joules.attributed_requests",
    "footprint.pue",
    "footprint.cost.price_per_kwh",
    "footprint.carbon_grams_per_kwh",
    *(f"slo.{name}_seconds" for name in ("ttft", "tpot", "e2e")),
    *(f"latency.{name}_seconds.n" for name in ("ttft", "tpot", "itl", "e2e")),
}


def test_every_number_is_declared_whole() -> None:
    for number in NUMBERS:
        assert number.title[:1].isupper(), number
        assert number.definition.endswith("."), number
        assert number.group, number
        assert number.when_null, number
    assert len({number.title for number in NUMBERS}) == len(NUMBERS)
    assert [number for numbers in groups().values() for number in numbers] != []


def test_no_figure_of_a_run_is_missing_from_the_list(tmp_path: Path) -> None:
    config = {"footprint": {"pue": 1.2, "price_per_kwh": 0.2, "carbon_grams_per_kwh": 300.0}}
    run = finish(
        Synthetic(rate=20.0, duration=30.0, warmup=5.0, overrides={"config": config}).write(tmp_path / "r")
    )

    def figures(model: BaseModel, path: str) -> set[str]:
        found = set()
        for name in type(model).model_fields:
            value = getattr(model, name)
            if isinstance(value, BaseModel):
                found |= figures(value, f"{path}.{name}")
            elif isinstance(value, (int, float)) and not isinstance(value, bool):
                found.add(f"{path}.{name}")
        return found

    sections = ("requests", "load", "latency", "tokens", "energy", "footprint")
    found = {path for name in sections for path in figures(getattr(run, name), name)}
    assert found - NOT_LISTED <= {number.path for number in NUMBERS}
    each = run.energy.per_request_joules
    assert each is not None
    assert each.ci95 is not None
    assert number_of("energy.per_request_joules.mean").interval_of(run) == each.ci95
    assert number_of("energy.per_request_joules.p50").interval_of(run) == (each.quantile_ci95 or {})["p50"]
    assert number_of("energy.total_joules").interval_of(run) is None


def test_what_is_compared_and_swept_is_in_the_list() -> None:
    for path in [*COMPARED, *POINT_NUMBERS.values()]:
        assert number_of(path).path == path
    with pytest.raises(KeyError):
        number_of("energy.nothing")


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("energy.per_request_joules.ci95", "too few requests for an interval"),
        ("tokens.cached", "the endpoint does not say"),
        ("slo", "no latency limits were given"),
        ("footprint.pue", "not given"),
        ("estimates.gpu", "not given"),
    ],
)
def test_why_a_number_may_be_null(path: str, reason: str) -> None:
    assert why_null(path) == reason
