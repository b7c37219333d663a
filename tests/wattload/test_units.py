"""Quantities with units."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattload.units import parse_duration, parse_quantity


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("500ms", 0.5),
        ("500us", 500e-6),
        ("20 µs", 20e-6),
        ("2m", 120),
        ("2min", 120),
        ("1m30s", 90),
        ("1h", 3600),
        ("1h 2m 3s 4ms", 3723.004),
        ("1.5 h", 5400),
        ("1e2s", 100),
        (".5", 0.5),
        ("3MS", 0.003),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "x",
        "5x",
        "-5",
        "1y",
        "nan",
        "inf",
        "30s1m",
        "1m1m",
        "1m30",
        "s",
        "1e999",
        "1e308h",
        "5 apples",
    ],
)
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a valid duration \(examples: 90, 90s"):
        parse_duration(text)


def test_a_unit_can_be_demanded() -> None:
    assert parse_duration("5ms", needs_unit=True) == 0.005
    with pytest.raises(ValueError, match=r"examples: 90s, "):
        parse_duration("5", needs_unit=True)


@pytest.mark.parametrize(
    ("text", "value"),
    [("120", 120), ("1.5kJ", 1500), ("2 Wh", 7200), ("1.2kW", 1200), ("-2.5", -2.5), ("+500ms", 0.5)],
)
def test_quantities_of_any_kind(text: str, value: float) -> None:
    assert parse_quantity(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "J", "5 apples", "+-5", "--5", "1e999", "nan"])
def test_what_is_no_quantity(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a quantity \(examples: "):
        parse_quantity(text)


@given(st.floats(0, 1e6), st.sampled_from(["us", "ms", "s", "m", "h"]))
def test_a_number_with_a_unit_is_its_product(value: float, unit: str) -> None:
    scale = {"us": 1e-6, "ms": 1e-3, "s": 1, "m": 60, "h": 3600}[unit]
    assert parse_duration(f"{value!r}{unit}") == pytest.approx(value * scale)
