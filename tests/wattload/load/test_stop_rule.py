"""The stop rule: ends when it knows enough, and not before."""

from __future__ import annotations

import numpy as np
import pytest

from wattload.client.record import Outcome, RequestRecord
from wattload.errors import BadInput
from wattload.load.stop_rule import parse_until
from wattload.load.totals import Totals


def test_it_ends_when_the_mean_is_known_well_enough() -> None:
    values = np.random.default_rng(1).normal(100, 20, 5000)
    rule = parse_until("ci95<2%")
    met = [n for n in range(100, 5000, 100) if rule.met(values[:n].tolist(), n / 10)]
    # 1.96 x 20 / sqrt(n) < 2 needs n > 384.
    assert met
    assert 200 <= met[0] <= 900


def test_it_does_not_look_too_early_or_too_often() -> None:
    same = [100.0] * 50 + [100.1] * 50
    rule = parse_until("ci95 < 50 %")
    assert not rule.met(same, 9.0)
    assert not rule.met(same[:99], 60.0)
    loud = np.random.default_rng(2).normal(100, 90, 120).tolist()
    strict = parse_until("ci95<0.1%")
    assert not strict.met(loud, 20.0)
    assert not strict.met([1.0, 1.1] * 100, 21.0), "it looks again after 5 s"


@pytest.mark.parametrize(
    "text", ["", "ci95", "ci95<2", "ci95<0%", "ci95<100%", "ci99<2%", "ci95<x%", "mean<2%"]
)
def test_what_is_no_rule(text: str) -> None:
    with pytest.raises(BadInput, match="until"):
        parse_until(text)


def test_the_rule_sees_the_joules_from_the_warm_up_on_and_only_where_it_is_asked_for() -> None:
    def ended(due: float, joules: float | None) -> RequestRecord:
        record = RequestRecord(0, "r", -1, "", due, 1, 1, outcome=Outcome.COMPLETED)
        record.energy_joules = joules
        return record

    kept, plain = Totals(keep_joules=True), Totals()
    kept.joules_from_unix = 100.0
    for record in (ended(99.9, 1.0), ended(100.0, 2.0), ended(101.0, None), ended(102.0, 3.0)):
        kept.add(record)
        plain.add(record)
    assert list(kept.joules) == [2.0, 3.0]
    assert list(plain.joules) == [], "eight bytes a request, for nothing"
    assert plain.recent_joules == kept.recent_joules == 2.0
