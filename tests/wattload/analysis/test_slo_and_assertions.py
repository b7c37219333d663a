"""What is written for limits and assertions is read exactly, or refused with the flag's name."""

from __future__ import annotations

import numpy as np
import pytest

from wattload.analysis.assertions import check_assertions, number_at, parse_assertion
from wattload.analysis.options import parse_slo
from wattload.analysis.slo import met
from wattload.errors import BadInput
from wattload.rundir.numbers import NUMBERS
from wattload.rundir.result import SloLimits


def test_reads_limits_with_units() -> None:
    limits = parse_slo("ttft=500ms, tpot=50000us,e2e=1.5min")
    assert limits.ttft_seconds == pytest.approx(0.5)
    assert limits.tpot_seconds == pytest.approx(0.05)
    assert limits.e2e_seconds == pytest.approx(90)


@pytest.mark.parametrize(
    "text", ["", "ttft", "ttft=", "ttft=5", "itl=5ms", "ttft=-1s", "ttft=0ms", "ttft=nan s"]
)
def test_refuses_what_is_no_limit(text: str) -> None:
    with pytest.raises(BadInput, match="slo"):
        parse_slo(text)


def test_refuses_a_limit_given_twice() -> None:
    with pytest.raises(BadInput, match="twice"):
        parse_slo("ttft=1s,ttft=2s")


def test_a_failed_request_meets_nothing_and_one_token_has_no_tpot() -> None:
    good = met(
        SloLimits(ttft_seconds=1.0, tpot_seconds=0.1),
        completed=np.array([True, True, True, False, True, True]),
        ttft_seconds=np.array([0.5, 1.5, 1.0, 0.1, 0.5, 0.5]),
        tpot_seconds=np.array([0.05, 0.05, np.nan, 0.05, np.nan, np.nan]),
        e2e_seconds=np.full(6, 1.0),
        output_tokens=np.array([9, 9, 1, 9, 9, np.nan]),
    )
    assert good.tolist() == [True, False, True, False, False, False], "an unknown TPOT meets no limit"


RUN = {
    "energy": {"per_request_joules": {"mean": 100.0, "ci95": [90.0, 110.0]}},
    "absent": {"energy.total_joules": "no meter"},
    "requests": {"failed": {"http_5xx": 3}},
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
    assert "no meter" in check_assertions([parse_assertion("energy.total_joules < 1")], RUN)[0]
    assert "not in run.json" in check_assertions([parse_assertion("energy.idle_joules < 1")], RUN)[0]


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("latency.ttft.p99", "latency.ttft_seconds.p99"),
        ("ttft_p99", "latency.ttft_seconds.p99"),
        ("energy.per_request", "energy.per_request_joules.mean"),
        ("energy_per_request_joules_mean", "energy.per_request_joules.mean"),
        ("requests.fail", "requests.failed_fraction"),
        ("slo.attainment", None),
        ("requests.failed.http_6xx", None),
        ("latency.ttft_seconds", None),
        ("name", None),
        ("energy.source", None),
    ],
)
def test_a_number_that_no_run_has_is_refused_with_near_names(path: str, near: str | None) -> None:
    with pytest.raises(BadInput, match=f"no number {path}") as refused:
        parse_assertion(f"{path} < 1")
    if near is not None:
        assert near in str(refused.value).partition("did you mean")[2]


@pytest.mark.parametrize(
    "path",
    [
        *(number.path for number in NUMBERS),
        "valid",
        "window.warmup_seconds",
        "energy.by_tag.a.attributed_joules",
    ],
)
def test_every_number_may_be_asserted(path: str) -> None:
    assert parse_assertion(f"{path} < 1").path == path


def test_an_outcome_that_no_request_had_is_zero_and_may_be_asserted() -> None:
    assert check_assertions([parse_assertion("requests.failed.http_429 == 0")], RUN) == []
    assert "it is 3" in check_assertions([parse_assertion("requests.failed.http_5xx == 0")], RUN)[0]


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
        "load.achieved_rps < 5%",
        "load.achieved_rps < b",
        "load.achieved_rps < 5 furlongs",
    ],
)
def test_refuses_what_is_no_assertion(text: str) -> None:
    with pytest.raises(BadInput, match="assertions"):
        parse_assertion(text)


def test_changes_need_percent() -> None:
    path = "energy.per_request_joules.mean"
    assert parse_assertion(f"{path} > +5%", field="fail_if", relative=True).value == 5.0
    assert parse_assertion(f"{path} < -2.5 %", field="fail_if", relative=True).value == -2.5
    with pytest.raises(BadInput, match="fail_if"):
        parse_assertion(f"{path} > 5", field="fail_if", relative=True)


def test_paths_do_not_reach_beyond_numbers() -> None:
    assert number_at(RUN, "energy") is None
    assert number_at(RUN, "energy.per_request_joules.ci95.7") is None
    assert number_at({"a": True}, "a") == 1.0
    assert number_at({"a": float("nan")}, "a") is None
