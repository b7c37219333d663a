"""What a study found: the estimate of every point, and what arms and rates save against others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wattload.study.effects import Effect, Estimate, Observation, corrected, effect, estimate
from wattload.study.levels import Level
from wattload.study.pairs import Pairs
from wattload.study.spec import ENERGY_PER_REQUEST, Question, Study, Workload, level_of
from wattload.study.table import Row, read_rows

# What the page shows savings of, beside whatever the questions ask for.
SAVED = (ENERGY_PER_REQUEST, "energy.per_output_token_joules")


@dataclass(frozen=True, slots=True)
class Saving:
    """A number of an arm against another at a point. `effect` None: no repeat is shared."""

    number: str
    workload: str
    level: Level
    arm: str
    against: str
    effect: Effect | None


@dataclass(frozen=True)
class Results:
    """Everything that is shown, from the cells that are made."""

    study: Study
    rows: list[Row]
    pairs: Pairs

    @classmethod
    def of(cls, study: Study, folder: Path) -> Results:
        """Reads the cells of a study's directory; those of arms, workloads and rates that the file has."""
        wanted = {
            (a, w.name, level.text) for a in study.arms for w in study.file.workloads for level in w.levels()
        }
        rows = [r for r in read_rows(folder) if (r.facts.arm, r.facts.workload, r.facts.level) in wanted]
        return cls(study, rows, Pairs(folder))

    @property
    def simulated(self) -> bool:
        return any(row.simulated for row in self.rows) or self.study.simulated

    def observations(self, number: str, arm: str, workload: str, level: str) -> dict[int, Observation]:
        """By repeat, of the valid cells that have the number."""
        found = {}
        for row in self.rows:
            facts = row.facts
            if (facts.arm, facts.workload, facts.level) == (arm, workload, level):
                value = row.value(number)
                if value is not None:
                    found[facts.repeat] = Observation(value, row.interval(number))
        return found

    def estimate(self, number: str, arm: str, workload: str, level: str) -> Estimate | None:
        return estimate(list(self.observations(number, arm, workload, level).values()))

    def steady(self, arm: str, workload: str, level: str) -> bool:
        """Whether every valid cell there was steady."""
        return all(
            row.steady
            for row in self.rows
            if (row.facts.arm, row.facts.workload, row.facts.level) == (arm, workload, level)
            and row.facts.valid
        )

    def savings(self, number: str) -> list[Saving]:
        """Every arm against the baseline at every point, corrected for their number."""
        study = self.study
        places = [
            (w.name, level, arm, study.baseline)
            for w in study.file.workloads
            for level in w.levels()
            for arm in study.arms
            if arm != study.baseline
        ]
        return self._corrected(number, places)

    def _corrected(self, number: str, places: Iterable[tuple[str, Level, str, str]]) -> list[Saving]:
        listed = list(places)
        found = []
        for workload, level, arm, against in listed:
            cells = {a: self.observations(number, a, workload, level.text) for a in self.study.arms}
            found.append(
                effect(cells, arm, against, self._paired(number, arm, against, workload, level.text))
            )
        return [
            Saving(number, workload, level, arm, against, each)
            for (workload, level, arm, against), each in zip(listed, corrected(found), strict=True)
        ]

    def _paired(
        self, number: str, arm: str, against: str, workload: str, level: str
    ) -> Callable[[int], tuple[float, float] | None]:
        """The interval of the ratio in a repeat, by the requests of both runs."""
        paths = {
            (row.facts.arm, row.facts.repeat): row.path
            for row in self.rows
            if (row.facts.workload, row.facts.level) == (workload, level) and row.facts.valid
        }

        def interval(repeat: int) -> tuple[float, float] | None:
            return self.pairs.interval(number, paths[arm, repeat], paths[against, repeat])

        return interval

    def level_savings(self, question: Question) -> list[Saving]:
        """Every rate that is asked about against `against_rate`, within each arm and workload."""
        listed, found = [], []
        for workload in self.workloads(question):
            base = level_of(workload, question.against_rate) if question.against_rate is not None else None
            if base is None:
                continue
            levels = [level for level in self.levels(question, workload.name) if level.text != base.text]
            for arm in question.arms or list(self.study.arms):
                cells = {
                    level.text: self.observations(question.number, arm, workload.name, level.text)
                    for level in workload.levels()
                }
                for level in levels:
                    listed.append((workload.name, level, arm, base.text))
                    found.append(effect(cells, level.text, base.text))
        return [
            Saving(question.number, workload, level, arm, against, each)
            for (workload, level, arm, against), each in zip(listed, corrected(found), strict=True)
        ]

    def arm_savings(self, question: Question) -> list[Saving]:
        """Every arm that is asked about against `against`, at each point that is asked about."""
        against = question.against or self.study.baseline
        arms = question.arms or [arm for arm in self.study.arms if arm != against]
        return self._corrected(
            question.number,
            [
                (workload.name, level, arm, against)
                for workload in self.workloads(question)
                for arm in arms
                if arm != against
                for level in self.levels(question, workload.name)
            ],
        )

    def workloads(self, question: Question) -> list[Workload]:
        """The workloads that a question is about."""
        known = self.study.workloads
        return [known[name] for name in question.workloads or known]

    def levels(self, question: Question, workload: str) -> list[Level]:
        """The levels of a workload that a question is about."""
        levels = self.study.workloads[workload].levels()
        if not question.rates:
            return list(levels)
        wanted = {
            level.text
            for rate in question.rates
            if (level := level_of(self.study.workloads[workload], rate)) is not None
        }
        return [level for level in levels if level.text in wanted]

    def devices(self) -> Mapping[str, list[str]]:
        """The GPUs that each arm ran on, by name and id."""
        found: dict[str, list[str]] = {}
        for row in self.rows:
            if row.run is not None:
                names = ", ".join(f"{d.get('name')} {d.get('id')}" for d in row.run.target.devices)
                found.setdefault(row.facts.arm, [])
                if names and names not in found[row.facts.arm]:
                    found[row.facts.arm].append(names)
        return found


def saving_line(saving: Saving) -> dict[str, Any]:
    """A saving as a line of effects.csv and of results.json."""
    blank = dict.fromkeys(
        (
            "ratio",
            "low",
            "high",
            "saving",
            "p",
            "p_adjusted",
            "comparisons",
            "significant",
            "repeats",
            "method",
        )
    )
    return {
        "number": saving.number,
        "workload": saving.workload,
        "level": saving.level.text,
        "rate_rps": saving.level.rate_rps,
        "arm": saving.arm,
        "against": saving.against,
        **(saving.effect.as_dict() if saving.effect is not None else blank),
    }
