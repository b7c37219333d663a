"""The checks of an engine on several GPUs find what is wrong, and pass what is right."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from wattmeter.steps.batch import StepBatch

H200 = Path(__file__).parents[2] / "benchmarks" / "h200"
STATE = {"devices": [{"id": "GPU-a"}, {"id": "GPU-b"}]}
RAW = {"GPU-a": 6_000.0, "GPU-b": 4_000.0}


@pytest.fixture
def parallel(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", [str(H200), *sys.path])
    import parallel as module

    return module


def answer(**more: Any) -> dict[str, Any]:
    plain = {
        "start": 100.0,
        "end": 120.0,
        "complete": True,
        "total_joules": 10_000.0,
        "attributed_joules": {"prefill": 2_000.0, "decode": 5_000.0},
        "idle_joules": 2_900.0,
        "unattributed_joules": 100.0,
        "devices": [{"id": "GPU-a", "joules": 6_000.0}, {"id": "GPU-b", "joules": 4_000.0}],
    }
    return {**plain, **more}


REQUESTS = [{"joules": 3_000.0}, {"joules": 4_000.0}]


def failing(checks: list[Any]) -> list[str]:
    return [check.name.strip() for check in checks if check.ok is not True]


def test_books_that_agree_with_both_counters_pass(parallel: Any) -> None:
    assert failing(parallel.check_books(answer(), REQUESTS, RAW)) == []
    assert failing(parallel.check_devices(STATE, 2, {"GPU-a": 300.0, "GPU-b": 290.0})) == []


@pytest.mark.parametrize(
    ("more", "raw", "names"),
    [
        # One GPU's joules are missing from the accounting although the division adds up.
        (
            {"devices": [{"id": "GPU-a", "joules": 10_000.0}]},
            RAW,
            ["accounting against the sum of the counters", "GPU-a"],
        ),
        ({}, {"GPU-a": 6_000.0, "GPU-b": 4_100.0}, ["accounting against the sum of the counters", "GPU-b"]),
        # Errors that cancel in the sum.
        ({}, {"GPU-a": 6_100.0, "GPU-b": 3_900.0}, ["GPU-a", "GPU-b"]),
        ({"idle_joules": None}, RAW, ["accounting"]),
        ({"complete": False}, RAW, ["window settled"]),
        (
            {"unattributed_joules": 0.0},
            RAW,
            ["requests + idle + unattributed = total", "accounting against the sum of the counters"],
        ),
        ({}, {"GPU-a": 6_000.0}, ["accounting against the sum of the counters", "GPU-b"]),
    ],
)
def test_books_that_do_not_agree_are_found(
    parallel: Any, more: dict[str, Any], raw: dict[str, float], names: list[str]
) -> None:
    assert failing(parallel.check_books(answer(**more), REQUESTS, raw)) == names


def test_a_request_without_joules_or_too_many_is_found(parallel: Any) -> None:
    name = "sum of the requests = prefill + decode"
    assert failing(parallel.check_books(answer(), [{"joules": None}, *REQUESTS], RAW)) == [name]
    assert failing(parallel.check_books(answer(), [{"joules": 50.0}, *REQUESTS], RAW)) == [name]


def test_a_gpu_that_works_without_being_metered_is_found(parallel: Any) -> None:
    above = {"GPU-a": 300.0, "GPU-b": 290.0, "GPU-c": 250.0}
    assert failing(parallel.check_devices(STATE, 2, above)) == ["no other GPU at work"]
    assert failing(parallel.check_devices(STATE, 4, None)) == ["devices metered"]


def test_without_counters_nothing_is_claimed_of_them(parallel: Any) -> None:
    checks = parallel.check_books(answer(), REQUESTS, None)
    assert [check.name for check in checks if check.ok is None] == ["accounting against the counters"]
    assert parallel.idle_checks({"watts": 200.0}, None, ["GPU-a"]).ok is None
    assert parallel.idle_checks({"watts": None}, RAW, ["GPU-a"]).ok is False
    idle = {"GPU-a": 100.0, "GPU-b": 110.0}
    assert parallel.idle_checks({"watts": 212.0}, idle, ["GPU-a", "GPU-b"]).ok is True
    assert parallel.idle_checks({"watts": 105.0}, idle, ["GPU-a", "GPU-b"]).ok is False


def test_a_stepping_counter_between_its_steps(parallel: Any) -> None:
    from counters import counter_at

    rows = [(0.02 * n, 100.0 * int((0.02 * n + 0.07) / 0.1)) for n in range(26)]
    assert counter_at(0.25, rows) == pytest.approx(100.0 * (0.25 + 0.07) / 0.1, abs=12.0)
    with pytest.raises(ValueError, match="did not step"):
        counter_at(0.25, rows[:14])


def steps(**more: Any) -> StepBatch:
    """`a` (5 in, 3 out, 2 of them cached) and `b` (4 in, 2 out) take turns, two steps under way at once."""
    columns: dict[str, Any] = {
        "index": [0, 1, 2, 3, 4],
        "launch_ns": [0, 5, 10, 20, 30],
        "end_ns": [10, 20, 30, 40, 50],
        "step": [0, 1, 2, 3, 4],
        "request": [0, 1, 0, 1, 0],
        "prefill_tokens": [3, 4, 0, 0, 0],
        "decode_tokens": [0, 0, 1, 1, 1],
        "context_tokens": [2, 0, 5, 4, 6],
        "cached_tokens": [2, 0, 0, 0, 0],
        "draft_tokens": [0] * 5,
        "accepted_tokens": [0] * 5,
    }
    arrays = {name: np.array(value) for name, value in {**columns, **more}.items() if name != "lost_steps"}
    return StepBatch(**arrays, request_ids=("a", "b"), lost_steps=more.get("lost_steps", 0))


SENT = [
    {"request_id": "a", "prompt_tokens": 5, "output_tokens": 3, "error": None},
    {"request_id": "b", "prompt_tokens": 4, "output_tokens": 2, "error": None},
]


def test_steps_and_tokens(parallel: Any) -> None:
    assert failing(parallel.check_steps("", steps())) == []
    assert parallel.inexact_requests([steps()], SENT) == []
    assert parallel.in_flight(steps()) == 2
    assert failing(parallel.check_steps("", steps(lost_steps=1))) == ["step records lost"]
    assert failing(parallel.check_steps("", steps(index=[0, 1, 2, 4, 5]))) == ["step numbers without gaps"]
    assert failing(parallel.check_steps("", steps(end_ns=[10, 30, 20, 40, 50]))) == ["steps in order"]
    assert parallel.inexact_requests([steps(decode_tokens=[0, 0, 1, 1, 0])], SENT) == ["a"]
    assert parallel.inexact_requests([steps(prefill_tokens=[3, 3, 0, 0, 0])], SENT) == ["b"]
    unknown = {"request_id": "c", "prompt_tokens": 1, "output_tokens": 1, "error": None}
    assert parallel.inexact_requests([steps()], [*SENT, unknown]) == ["c"]


def test_a_request_is_of_exactly_one_engine(parallel: Any) -> None:
    elsewhere = replace(steps(), request_ids=("x", "y"))
    assert parallel.inexact_requests([elsewhere, steps()], SENT) == []
    assert parallel.inexact_requests([steps(), steps()], SENT) == ["a", "b"]


def test_a_whole_run_is_judged_and_shown(parallel: Any) -> None:
    options = SimpleNamespace(name="tp2", reader="nvml", gpus=2)
    readings = (
        (90.0, {"GPU-a": 0.0, "GPU-b": 0.0}),
        (100.0, {"GPU-a": 1_000.0, "GPU-b": 900.0}),
        (120.0, {"GPU-a": 7_000.0, "GPU-b": 4_900.0}),
    )
    sent = [{**request, "sent_unix": 101.0, "done_unix": 110.0} for request in SENT]
    books = [
        {"id": name, "joules": joules, "status": "settled", "flags": []}
        for name, joules in (("a", 3_000.0), ("b", 4_000.0))
    ]
    state = {**STATE, "source": "nvml", "engine": "vllm", "model_name": "m"}
    answers = {"energy": state, "windows": [{}, {**answer(), "flags": []}], "requests": books}
    window = {"requests": sent}
    result = parallel.judged(
        options, {"watts": 189.0}, readings, window=window, answers=answers, steps=[steps()]
    )
    assert [check["name"] for check in result["checks"] if check["ok"] is not True] == []
    figures = result["figures"]
    assert figures["device_share"] == {"GPU-a": 0.6, "GPU-b": 0.4}
    assert figures["idle_watts"]["counters"] == {"GPU-a": 100.0, "GPU-b": 90.0}
    assert figures["joules_per_request"] == 3_500.0
    assert "shares: 60.0%, 40.0%" in parallel.shown(result)
    books[0]["flags"] = ["lost_step_records"]
    result = parallel.judged(
        options, {"watts": 189.0}, readings, window=window, answers=answers, steps=[steps()]
    )
    assert [check["name"] for check in result["checks"] if check["ok"] is not True] == ["flags"]
