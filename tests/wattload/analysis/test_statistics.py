"""Intervals cover what they say, on series that are correlated in time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from wattload.analysis.stationarity import mser5, trend
from wattload.analysis.statistics import (
    mean_interval,
    paired_quantile_ratio,
    quantile,
    quantile_interval,
    ratio_interval,
    ratio_of,
    share_interval,
)
from wattload.analysis.window import mean_in_flight

F64 = npt.NDArray[np.float64]


def ar1(rng: np.random.Generator, n: int, phi: float, runs: int) -> F64:
    noise = rng.standard_normal((runs, n))
    series = np.empty((runs, n))
    series[:, 0] = noise[:, 0] / np.sqrt(1 - phi**2)
    for k in range(1, n):
        series[:, k] = phi * series[:, k - 1] + noise[:, k]
    return series


# Nominal 95 %. Few and correlated values say little of their own correlation, hence the wider allowance.
@pytest.mark.parametrize(
    ("phi", "n", "least"),
    [
        (0.0, 30, 0.93),
        (0.0, 100, 0.93),
        (0.5, 100, 0.92),
        (0.5, 600, 0.93),
        (0.8, 600, 0.93),
        (0.9, 2000, 0.93),
    ],
)
@pytest.mark.parametrize("sigma", [0.2, 0.6])
def test_mean_interval_covers(phi: float, n: int, least: float, sigma: float) -> None:
    """Lognormal values, whose logarithms are correlated from one to the next."""
    normal = ar1(np.random.default_rng(7), n, phi, 600) * np.sqrt(1 - phi**2)
    hits = 0
    for values in np.exp(sigma * normal):
        interval = mean_interval(values)
        assert interval is not None
        assert 0 < interval.low < interval.estimate < interval.high
        hits += interval.low <= np.exp(sigma**2 / 2) <= interval.high
    assert hits / 600 >= least
    assert hits / 600 <= 0.995


def test_intervals_are_of_positive_quantities() -> None:
    """However few and wild the values, an interval of joules holds no negative ones."""
    rng = np.random.default_rng(11)
    for _ in range(50):
        interval = mean_interval(rng.lognormal(0, 2.5, 30))
        assert interval is not None
        assert interval.low > 0


def test_share_interval_covers_and_stays_within_0_and_1() -> None:
    rng = np.random.default_rng(12)
    for share in (0.5, 0.95):
        hits = 0
        for _ in range(400):
            interval = share_interval(rng.uniform(size=200) < share)
            assert interval is not None
            assert 0 <= interval[0] <= interval[1] <= 1
            hits += interval[0] <= share <= interval[1]
        assert 0.92 <= hits / 400 <= 0.995
    assert share_interval(np.ones(29, bool)) is None
    every = share_interval(np.ones(100, bool))
    assert every is not None
    assert every[0] < 0.97
    assert every[1] == 1.0


def test_the_quantile_is_linear_between_order_statistics() -> None:
    assert quantile([1.0, 2.0, 4.0], 0.5) == 2.0
    assert quantile([1.0, 2.0, 4.0], 0.75) == 3.0


def test_ignoring_correlation_would_not_cover() -> None:
    """The yardstick: the textbook interval on the same series misses far more often."""
    series = ar1(np.random.default_rng(7), 600, 0.8, 400)
    naive = 1.96 * series.std(axis=1, ddof=1) / np.sqrt(600)
    assert (np.abs(series.mean(axis=1)) <= naive).mean() < 0.6


def test_ratio_interval_covers() -> None:
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(500):
        counts = rng.poisson(10, 60).astype(float)
        joules = 120.0 + np.array([rng.exponential(50.0, int(c)).sum() for c in counts])
        interval = ratio_interval(joules, counts)
        assert interval is not None
        hits += interval.low <= 62.0 <= interval.high
    assert 0.91 <= hits / 500 <= 0.985


def test_quantile_interval_covers() -> None:
    rng = np.random.default_rng(4)
    truth = np.log(10)
    hits = [
        interval.low <= truth <= interval.high
        for _ in range(400)
        if (interval := quantile_interval(rng.exponential(1.0, 3000), 0.9)) is not None
    ]
    assert len(hits) == 400
    assert 0.92 <= np.mean(hits) <= 0.99


def test_too_few_values_have_no_interval() -> None:
    assert mean_interval(np.arange(1.0, 30.0)) is None
    assert mean_interval(np.arange(1.0, 31.0)) is not None
    assert mean_interval(np.zeros(100)) is None
    assert ratio_interval([1.0] * 40, [0.0] * 40) is None
    assert quantile_interval(np.arange(1.0, 30.0), 0.5) is None
    assert quantile_interval(np.arange(1.0, 100.0), 0.95) is None


def test_shapes_must_fit() -> None:
    with pytest.raises(ValueError, match="one length"):
        ratio_interval([1.0, 2.0], [1.0])


def test_equal_values_have_an_interval_of_no_width() -> None:
    interval = mean_interval([3.0] * 50)
    assert interval is not None
    assert interval.pair == (3.0, 3.0)


def test_pairing_narrows_the_difference() -> None:
    rng = np.random.default_rng(5)
    shared = 10 + rng.exponential(50, 2000)
    after = shared * 0.95 + rng.standard_normal(2000)
    paired = ratio_interval(after, shared)
    first, second = mean_interval(shared), mean_interval(after)
    assert paired is not None
    assert first is not None
    assert second is not None
    apart = ratio_of(first, second)
    assert apart.estimate == pytest.approx(paired.estimate)
    assert paired.half_width < apart.half_width / 5
    quantiles = paired_quantile_ratio(shared, after, 0.5)
    assert quantiles is not None
    assert quantiles.high < 1


def test_a_difference_of_the_detectable_size_is_detected_as_often_as_said() -> None:
    rng = np.random.default_rng(6)
    errors, found = [], 0
    for _ in range(300):
        first = mean_interval(rng.exponential(1.0, 400))
        assert first is not None
        shift = 1 + first.minimum_detectable_fraction()
        errors.append(shift)
        second = mean_interval(rng.exponential(shift, 400))
        assert second is not None
        found += ratio_of(first, second).low > 1
    # The standard error of one sample is itself known to about 25 %, so the power is known as roughly.
    assert 0.6 < found / 300 < 0.95
    assert 1.05 < np.median(errors) < 1.5


def test_mser5_finds_the_end_of_a_warmup() -> None:
    rng = np.random.default_rng(8)
    cuts = [
        mser5(np.concatenate((np.linspace(0, 20, 60), np.full(240, 20.0))) + rng.standard_normal(300))
        for _ in range(40)
    ]
    found = [cut for cut in cuts if cut is not None]
    # MSER now and then cuts more than it had to, or gives up; it does not cut less.
    assert len(found) >= 35
    assert min(found) >= 45
    assert 45 <= np.median(found) <= 75
    calm = [mser5(rng.standard_normal(300)) for _ in range(40)]
    assert np.median([cut for cut in calm if cut is not None]) <= 40


def test_mser5_gives_up_where_nothing_settles() -> None:
    assert mser5(np.arange(300.0) ** 2) is None
    assert mser5(np.ones(10)) is None


def test_a_growing_queue_is_not_steady_and_noise_is() -> None:
    rng = np.random.default_rng(9)
    grows = trend(np.linspace(10, 40, 240) + rng.standard_normal(240), "queue")
    assert grows is not None
    assert not grows.steady
    assert grows.relative_change > 0.5
    calm = [trend(20 + rng.standard_normal(240), "queue") for _ in range(200)]
    assert all(t is not None and t.steady for t in calm)
    assert trend([1.0, 2.0], "queue") is None


# --- a load that comes and goes -----------------------------------------------------------------------------


def served(
    rng: np.random.Generator, n: int, level: float, runs: int, follows: float = 1.0
) -> tuple[F64, F64]:
    """(latencies, requests in flight), both of shape (runs, n): `level` in flight on average, with the
    variance of a Poisson distribution and an exponential decay over twice as many requests; latencies of
    independent lengths that grow with the load.
    """
    phi = np.exp(-1 / (2 * level))
    in_flight = level + np.sqrt(level) * ar1(rng, n, phi, runs) * np.sqrt(1 - phi**2)
    lengths = rng.lognormal(0.0, 0.2, (runs, n))
    return lengths * (1 + follows * (in_flight / level - 1)), in_flight


@pytest.mark.parametrize("n", [100, 400, 1000])
def test_latencies_under_a_slow_load_are_covered_with_the_requests_in_flight(n: int) -> None:
    latencies, in_flight = served(np.random.default_rng(21), n, 50.0, 400)
    truth = float(np.exp(0.2**2 / 2))
    with_load = [mean_interval(y, z) for y, z in zip(latencies, in_flight, strict=True)]
    without = [mean_interval(y) for y in latencies]
    assert np.mean([i is not None and i.low <= truth <= i.high for i in without]) < 0.9
    assert np.mean([i is not None and i.low <= truth <= i.high for i in with_load]) >= 0.92


def test_quantiles_under_a_slow_load_are_covered_with_the_requests_in_flight() -> None:
    latencies, in_flight = served(np.random.default_rng(22), 400, 50.0, 400)
    truth = float(np.median(latencies))
    pairs = [quantile_interval(y, 0.5, z) for y, z in zip(latencies, in_flight, strict=True)]
    without = [quantile_interval(y, 0.5) for y in latencies]
    assert np.mean([i.low <= truth <= i.high for i in without if i is not None]) < 0.8
    assert np.mean([i.low <= truth <= i.high for i in pairs if i is not None]) >= 0.93


@pytest.mark.parametrize("n", [40, 300])
@pytest.mark.parametrize("q", [None, 0.5, 0.9])
def test_the_requests_in_flight_never_narrow_an_interval(q: float | None, n: int) -> None:
    latencies, in_flight = served(np.random.default_rng(23), n, 20.0, 60, follows=0.5)
    for y, z in zip(latencies, in_flight, strict=True):
        alone, both = (
            mean_interval(y, load) if q is None else quantile_interval(y, q, load) for load in (None, z)
        )
        if alone is None or both is None:
            assert alone is both
            continue
        assert both.low <= alone.low
        assert both.high >= alone.high
        assert both.relative_error >= alone.relative_error


def test_a_load_that_never_changes_leaves_the_interval_as_it_is() -> None:
    values = np.random.default_rng(24).lognormal(0.0, 0.5, 200)
    assert mean_interval(values, np.full(200, 16.0)) == mean_interval(values)
    assert quantile_interval(values, 0.5, np.full(200, 16.0)) == quantile_interval(values, 0.5)


def test_values_that_do_not_follow_the_load_are_hardly_less_sure() -> None:
    latencies, in_flight = served(np.random.default_rng(25), 1000, 10.0, 100, follows=0.0)
    ratios = []
    for y, z in zip(latencies, in_flight, strict=True):
        alone, both = mean_interval(y), mean_interval(y, z)
        assert alone is not None
        assert both is not None
        ratios.append(both.half_width / alone.half_width)
    assert np.median(ratios) < 1.1


def test_the_requests_in_flight_with_each() -> None:
    """One alone for its first half, two for 1 s in the middle, one that was never sent."""
    sent = np.array([0.0, 1.0, np.nan, 5.0])
    ended = np.array([2.0, 3.0, np.nan, 5.0])
    found = mean_in_flight(sent, ended)
    assert found[:2] == pytest.approx([1.5, 1.5])
    assert np.isnan(found[2])
    assert found[3] == pytest.approx(1.0)
    assert np.isnan(mean_in_flight(np.full(3, np.nan), np.full(3, np.nan))).all()
