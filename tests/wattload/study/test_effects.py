"""Estimates and savings against truths that are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from wattload.study.effects import Effect, Observation, corrected, effect, estimate

Cells = dict[str, dict[int, Observation]]


def drawn(
    rng: np.random.Generator, ratios: dict[str, float], repeats: int, *, noise: float, common: float = 0.5
) -> Cells:
    """Cells whose repeats differ by a factor common to all arms, and each by noise of its own."""
    shift = rng.normal(0, common, repeats)
    return {
        arm: {
            r: Observation(50.0 * ratio * math.exp(shift[r] + rng.normal(0, noise)), None)
            for r in range(repeats)
        }
        for arm, ratio in ratios.items()
    }


@pytest.mark.parametrize(("arms", "repeats"), [(2, 3), (2, 6), (4, 2), (4, 3)])
def test_intervals_hold_the_true_ratio_as_often_as_they_say(arms: int, repeats: int) -> None:
    rng = np.random.default_rng(1)
    ratios = {f"a{i}": 1.0 - 0.1 * i for i in range(arms)}
    count, hits, wide = 1500, 0, []
    for _ in range(count):
        found = effect(drawn(rng, ratios, repeats, noise=0.04), "a1", "a0")
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 0.9 <= found.high
        wide.append(found.high - found.low)
    # 95 % of 1,500, within 4 standard errors.
    assert abs(hits / count - 0.95) < 4 * math.sqrt(0.95 * 0.05 / count)
    # What is common to a repeat is not in the interval.
    assert np.median(wide) < 0.5


def test_no_difference_is_found_significant_as_rarely_as_it_says() -> None:
    rng = np.random.default_rng(2)
    arms = {f"a{i}": 1.0 for i in range(4)}
    count, families = 800, 0
    for _ in range(count):
        cells = drawn(rng, arms, 3, noise=0.05)
        found = corrected([effect(cells, f"a{i}", "a0") for i in (1, 2, 3)])
        families += any(each is not None and each.significant for each in found)
    assert families / count < 0.05 + 4 * math.sqrt(0.05 * 0.95 / count)


def test_a_missing_cell_leaves_the_others_usable() -> None:
    cells = drawn(np.random.default_rng(3), {"a": 1.0, "b": 0.8, "c": 1.2}, 4, noise=0.001)
    del cells["b"][2]
    del cells["a"][0]
    found = effect(cells, "b", "a")
    assert found is not None
    assert found.ratio == pytest.approx(0.8, rel=0.01)
    assert found.repeats == 2
    assert found.significant


def test_arms_that_share_no_repeat_are_not_compared() -> None:
    one = Observation(1.0, (0.9, 1.1))
    assert effect({"a": {1: one}, "b": {2: one}}, "b", "a") is None
    assert effect({"a": {1: one}}, "b", "a") is None


def test_one_repeat_takes_the_runs_own_intervals() -> None:
    cells = {"a": {1: Observation(100.0, (90.2, 109.8))}, "b": {1: Observation(80.0, (72.16, 87.84))}}
    found = effect(cells, "b", "a")
    assert found is not None
    assert found.ratio == pytest.approx(0.8)
    assert "own intervals" in found.method
    # Each logarithm has an error of about 0.05: 0.0707 together.
    assert found.low == pytest.approx(0.8 * math.exp(-1.96 * 0.0709), rel=1e-3)
    pairwise = effect(cells, "b", "a", lambda repeat: (0.78, 0.82) if repeat == 1 else None)
    assert pairwise is not None
    assert pairwise.method == "request by request, one run each"
    assert pairwise.low == pytest.approx(0.78, rel=1e-3)
    assert pairwise.high == pytest.approx(0.82, rel=1e-3)
    nothing = effect({"a": {1: Observation(100.0)}, "b": {1: Observation(80.0)}}, "b", "a")
    assert nothing is not None
    assert (nothing.low, nothing.p, nothing.significant) == (None, None, None)


def test_holms_correction() -> None:
    def with_p(p: float | None) -> Effect:
        return Effect(0.9, 0.8, 1.0, p, 3, "")

    found = corrected([with_p(0.01), None, with_p(0.04), with_p(0.03), with_p(None)])
    adjusted = [None if each is None else each.p_adjusted for each in found]
    assert adjusted == [pytest.approx(0.03), None, pytest.approx(0.06), pytest.approx(0.06), None]
    first = found[0]
    assert first is not None
    assert first.comparisons == 3
    assert first.significant


def test_an_estimate_says_what_its_interval_is() -> None:
    three = estimate([Observation(v) for v in (9.0, 10.0, 11.0)])
    assert three is not None
    assert three.method == "over repeats"
    assert three.low is not None
    assert three.high is not None
    assert three.low < 10.0 < three.high
    one = estimate([Observation(10.0, (8.0, 12.0))])
    assert one is not None
    assert one.method == "of one run"
    bare = estimate([Observation(10.0)])
    assert bare is not None
    assert bare.low is None
    assert estimate([]) is None
    assert estimate([Observation(0.0)]) is None


def test_equal_cells_are_no_difference() -> None:
    same = {r: Observation(10.0) for r in range(3)}
    found = effect({"a": same, "b": same}, "b", "a")
    assert found is not None
    assert found.ratio == pytest.approx(1.0)
    assert not corrected([found])[0].significant  # type: ignore[union-attr]
