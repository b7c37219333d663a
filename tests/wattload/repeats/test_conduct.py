"""A run made several times: which runs are made, with which seeds, when it ends, and what follows of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synthetic_run import Synthetic
from wattload.analysis.compute import finish
from wattload.analysis.repeats import Repeats, load
from wattload.cli.repeat_count import with_repeats
from wattload.config import RunConfig
from wattload.errors import InputError, RunInvalid
from wattload.repeats.conduct import LEAST_BEFORE_STOPPING, Plan, conduct
from wattload.repeats.show import print_repeats
from wattload.rundir.result import RunJson

BASE = RunConfig.of({"url": "http://h", "trace": "conv", "rate": "20", "duration": "30s", "seed": 7})


class Made:
    """Makes synthetic runs in place of real ones; `costs` are joules per output token, run by run."""

    def __init__(self, costs: Callable[[int], float] = lambda seed: 0.3, **settings: Any) -> None:
        self._costs, self._settings = costs, settings
        self.seeds: list[int] = []

    def __call__(self, config: RunConfig) -> RunJson:
        assert config.output.out is not None
        assert not config.analysis.assertions
        seed = config.schedule.seed
        self.seeds.append(seed)
        run = Synthetic(
            rate=20.0,
            duration=30.0,
            warmup=5.0,
            seed=seed,
            schedule_sha256=f"s{seed}",
            decode_token_joules=self._costs(seed),
            gaps=False,
            **self._settings,
        ).write(config.output.out)
        return finish(run)


def silent(_: str) -> None:
    """Says nothing."""


def series(folder: Path, count: int = 4, made: Made | None = None, until: str | None = None) -> Repeats:
    plan = Plan.of(count, until)
    assert plan is not None
    return conduct(BASE, folder, plan, execute=made or Made(), say=silent)


def varied(spread: float) -> Callable[[int], float]:
    return lambda seed: 0.3 * float(np.exp(spread * np.random.default_rng(seed).standard_normal()))


def test_each_repeat_has_a_seed_of_its_own_and_a_directory(tmp_path: Path) -> None:
    made = Made()
    found = series(tmp_path / "r", 3, made)
    assert made.seeds == [7, 8, 9]
    assert [run.path.name for run in found.repeats] == ["repeat-01", "repeat-02", "repeat-03"]
    raw = json.loads((tmp_path / "r" / "repeats.json").read_text())
    assert [run["seed"] for run in raw["runs"]] == [7, 8, 9]
    number = raw["numbers"]["energy.per_request_joules.mean"]
    assert number["mean"] == pytest.approx(np.mean(number["values"]))
    assert number["ci95"][0] < number["mean"] < number["ci95"][1]
    assert number["within_run_ci95"][0] < number["within_run_ci95"][1]


def test_the_interval_over_repeats_sees_what_varies_between_them(tmp_path: Path) -> None:
    calm, wild = series(tmp_path / "a", 6, Made(varied(0.0))), series(tmp_path / "b", 6, Made(varied(0.3)))

    def widths(found: Repeats) -> tuple[float, float]:
        raw = json.loads((found.path / "repeats.json").read_text())["numbers"]
        each = raw["energy.per_request_joules.attributed_mean"]
        return tuple((each[k][1] - each[k][0]) / each["mean"] for k in ("ci95", "within_run_ci95"))

    assert widths(wild)[0] > 3 * widths(calm)[0]
    assert widths(wild)[1] < 2 * widths(calm)[1], "within a run nothing of it shows"


def test_a_series_is_continued_where_it_was_interrupted(tmp_path: Path) -> None:
    series(tmp_path / "r", 2)
    cut = Made(overrides={"interrupted": "interrupted"})
    with pytest.raises(RunInvalid, match="continues it"):
        series(tmp_path / "r", 4, cut)
    assert cut.seeds == [9]
    rest = Made()
    found = series(tmp_path / "r", 4, rest)
    assert rest.seeds == [9, 10], "what was cut short is made again, what was made is kept"
    assert (tmp_path / "r" / "repeat-03.cut-1").is_dir()
    assert len(found.repeats) == 4
    with pytest.raises(InputError, match="another rate"):
        conduct(BASE.changed(rate="3"), tmp_path / "r", Plan(4), execute=Made(), say=silent)


def test_a_repeat_that_is_not_valid_is_left_out_and_named(tmp_path: Path) -> None:
    def execute(config: RunConfig) -> RunJson:
        bad = config.schedule.seed == 8
        return Made(overrides={"reasons": ["client saturated"]} if bad else {})(config)

    found = conduct(BASE, tmp_path / "r", Plan(4), execute=execute, say=silent)
    assert found.valid
    assert len(found.valid_repeats) == 3
    assert any("repeat-02 is not valid and left out: client saturated" in note for note in found.notes)
    none = series(tmp_path / "none", 2, Made(overrides={"reasons": ["client saturated"]}))
    assert not none.valid
    assert len(none.reasons) == 2


def test_it_goes_on_until_the_interval_is_narrow_enough(tmp_path: Path) -> None:
    calm = Made(varied(0.001))
    found = series(tmp_path / "a", 12, calm, until="ci95<40%")
    assert len(found.repeats) == LEAST_BEFORE_STOPPING
    wild = Made(varied(0.5))
    assert len(series(tmp_path / "b", 6, wild, until="ci95<0.1%").repeats) == 6


def test_without_energy_latency_decides(tmp_path: Path) -> None:
    said: list[str] = []
    plan = Plan.of(8, "ci95<50%")
    assert plan is not None
    made = Made(with_answer=False, overrides={"no_energy_reason": "not asked for", "energy_url": None})

    def without(config: RunConfig) -> RunJson:
        made(config)
        assert config.output.out is not None
        for name in ("energy.parquet", "energy_split.parquet"):
            (config.output.out / name).unlink(missing_ok=True)
        from wattload.rundir.directory import RunDir

        return finish(RunDir.open(config.output.out))

    found = conduct(BASE, tmp_path / "r", plan, execute=without, say=said.append)
    assert len(found.repeats) == LEAST_BEFORE_STOPPING
    assert any("End-to-end latency" in text for text in said)


@pytest.mark.parametrize(
    ("repeats", "until", "field"),
    [(1, None, "repeats"), (0, None, "repeats"), (3, "ci95<2%", "repeats"), (None, "soon", "repeat_until")],
)
def test_nonsense_is_refused(repeats: int | None, until: str | None, field: str) -> None:
    with pytest.raises(InputError) as refused:
        Plan.of(repeats, until)
    assert refused.value.field == field


def test_plans() -> None:
    assert Plan.of(None, None) is None
    assert Plan.of(5, None) == Plan(5)
    assert Plan.of(None, "ci95<2%") == Plan(20, 0.02)


def test_repeat_with_a_number_is_short_for_repeats() -> None:
    assert with_repeats(["--repeat", "5", "URL"]) == ["--repeats", "5", "URL"]
    assert with_repeats(["URL", "--repeat=5"]) == ["URL", "--repeats=5"]
    for kept in (["--repeat", "http://h"], ["--repeat", "--seed", "5"], ["--repeat"], ["--no-repeat", "5"]):
        assert with_repeats(kept) == kept


def test_what_is_shown_and_read_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = series(tmp_path / "r", 3)
    print_repeats(made)
    said = capsys.readouterr().out
    assert "3 valid repeats of 3" in said
    assert "within a run" in said
    again = load(tmp_path / "r")
    assert isinstance(again, Repeats)
    assert again.result == made.result
    assert not isinstance(load(tmp_path / "r" / "repeat-01"), Repeats)
    (tmp_path / "r" / "repeats.json").write_text('{"schema": "other"}')
    with pytest.raises(InputError, match="schema 'other'"):
        load(tmp_path / "r")
