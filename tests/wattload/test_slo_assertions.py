"""What is written for limits and assertions is read exactly, or refused with the flag's name."""

from __future__ import annotations

import numpy as np
import pytest
from wattload.assertions import check_assertions, number_at, parse_assertion
from wattload.errors import BadInput
from wattload.runjson import SloLimits
from wattload.slo import met, parse_slo


def test_reads_limits_with_units() -> None:
    limits = parse_slo("ttft=500ms, tpot=50000us,e2e=1.5min")
    assert limits.ttft_seconds == pytest.approx(0.5)
    assert limits.tpot_seconds == pytest.approx(0.05)
    assert limits.e2e_seconds == pytest.approx(90)


@pytest.mark.parametrize(
    "text", ["", "ttft", "ttft=", "ttft=5", "itl=5ms", "ttft=-1s", "ttft=0ms", "ttft=nan s"]
)
def test_refuses_what_is_no_limit(text: str) -> None:
    with pytest.raises(BadInput, match="--slo"):
        parse_slo(text)


def test_refuses_a_limit_given_twice() -> None:
    with pytest.raises(BadInput, match="twice"):
        parse_slo("ttft=1s,ttft=2s")


def test_a_failed_request_meets_nothing_and_one_token_has_no_tpot() -> None:
    good = met(
        SloLimits(ttft_seconds=1.0, tpot_seconds=0.1),
        completed=np.array([True, True, True, False]),
        ttft_seconds=np.array([0.5, 1.5, 1.0, 0.1]),
        tpot_seconds=np.array([0.05, 0.05, np.nan, 0.05]),
        e2e_seconds=np.array([1.0, 1.0, 1.0, 1.0]),
    )
    assert good.tolist() == [True, False, True, False]


RUN = {
    "energy": {"per_request_joules": {"mean": 100.0, "ci95": [90.0, 110.0]}},
    "absent": {"energy.x": "no meter"},
}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("energy.per_request_joules.mean < 120", True),
        ("energy.per_request_joules.mean<=100", True),
        ("energy.per_request_joules.mean > 100", False),
        ("energy.per_request_joules.mean < 0.2kJ", True),
        ("energy.per_request_joules.ci95.1 == 110", True),
        ("energy.per_request_joules.mean != 1e2", False),
    ],
)
def test_assertions(text: str, holds: bool) -> None:
    failures = check_assertions([parse_assertion(text)], RUN)
    assert (failures == []) is holds
    if not holds:
        assert "it is 100" in failures[0]


def test_a_number_that_is_not_there_fails_with_the_reason() -> None:
    assert "no meter" in check_assertions([parse_assertion("energy.x < 1")], RUN)[0]
    assert "not in run.json" in check_assertions([parse_assertion("energy.y < 1")], RUN)[0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "a <",
        "< 5",
        "a < b",
        "a < 5 6",
        "a < nan",
        "__import__('os') < 1",
        "a.b() < 1",
        "a < 5%",
        "a < 5 furlongs",
    ],
)
def test_refuses_what_is_no_assertion(text: str) -> None:
    with pytest.raises(BadInput, match="--assert"):
        parse_assertion(text)


def test_changes_need_percent() -> None:
    assert parse_assertion("a > +5%", flag="--fail-if", relative=True).value == 5.0
    assert parse_assertion("a < -2.5 %", flag="--fail-if", relative=True).value == -2.5
    with pytest.raises(BadInput, match="--fail-if"):
        parse_assertion("a > 5", flag="--fail-if", relative=True)


def test_paths_do_not_reach_beyond_numbers() -> None:
    assert number_at(RUN, "energy") is None
    assert number_at(RUN, "energy.per_request_joules.ci95.7") is None
    assert number_at({"a": True}, "a") == 1.0
    assert number_at({"a": float("nan")}, "a") is None
