"""A sentence for each question of a study, made from its figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wattload.report.formatting import interval, quantity
from wattload.rundir.numbers import number_of
from wattload.study.levels import Level
from wattload.study.results import Results, Saving
from wattload.study.spec import Question


@dataclass(frozen=True, slots=True)
class Answer:
    """A question with its sentences, and the comparisons they are made of."""

    question: Question
    sentences: tuple[str, ...]
    savings: tuple[Saving, ...]


def answers(results: Results) -> list[Answer]:
    """The questions of the study in their order, answered from the cells that are made."""
    return [_answer(results, question) for question in results.study.file.questions]


def _answer(results: Results, question: Question) -> Answer:
    if question.against_rate is not None:
        savings = results.level_savings(question)
        return Answer(question, compared(results, question, savings, by_rate=True), tuple(savings))
    savings = results.arm_savings(question)
    if savings:
        return Answer(question, compared(results, question, savings, by_rate=False), tuple(savings))
    arms = question.arms or list(results.study.arms)
    points = [
        (workload.name, level)
        for workload in results.workloads(question)
        for level in results.levels(question, workload.name)
    ]
    return Answer(question, described(results, question, arms, points), ())


def compared(
    results: Results, question: Question, savings: Sequence[Saving], *, by_rate: bool
) -> tuple[str, ...]:
    """A sentence per workload and pair: what is saved or costs more at each point, and what of it is sure."""
    title = _title(results, question.number)
    groups: dict[tuple[str, str, str], list[Saving]] = {}
    for saving in savings:
        groups.setdefault((saving.workload, saving.arm, saving.against), []).append(saving)
    sentences = []
    absent: dict[str, list[str]] = {}
    for (workload, arm, against), group in groups.items():
        where = results.study.workloads[workload].label
        named = (
            f"{_arm(results, arm)} against {_arm(results, against)}" if not by_rate else _arm(results, arm)
        )
        known = [(saving.level, saving.effect) for saving in group if saving.effect is not None]
        if not known:
            absent.setdefault(workload, []).append(named)
            continue
        parts = [
            f"{_change(effect.ratio)}{_spread(effect.low, effect.high)} at {level.text}"
            for level, effect in known
        ]
        beside = f" than {against}" if by_rate else ""
        sentences.append(f"{where}, {named}: {title} is {_listed(parts)}{beside}.")
    for workload, named_pairs in absent.items():
        where = results.study.workloads[workload].label
        if any(row.facts.workload == workload for row in results.rows):
            sentences.append(f"{where}: there is no figure of both of {_listed(named_pairs)}.")
        else:
            sentences.append(f"{where}: no cell is made yet.")
    sure = [s.effect for s in savings if s.effect is not None and s.effect.significant]
    judged = [s.effect for s in savings if s.effect is not None and s.effect.p_adjusted is not None]
    if judged:
        sentences.append(
            f"{len(sure)} of {len(judged)} differences are significant at 5 % after Holm's correction for"
            f" {len(judged)} comparisons; brackets are 95 % intervals of each alone."
        )
    if any(s.effect is not None and s.effect.low is None for s in savings):
        sentences.append("Where no interval is shown, the runs were too short for one.")
    shaky = {s.level.text for s in savings if not by_rate and not _steady(results, s)}
    if shaky:
        sentences.append(f"Not every run was steady at {_listed(sorted(shaky))}.")
    return tuple(sentences)


def described(
    results: Results, question: Question, arms: Sequence[str], points: Sequence[tuple[str, Level]]
) -> tuple[str, ...]:
    """The figures themselves, where there is nothing to compare."""
    number = number_of(question.number)
    sentences = []
    for arm in arms:
        parts = []
        for workload, level in points:
            found = results.estimate(question.number, arm, workload, level.text)
            if found is not None:
                pair = (found.low, found.high) if found.low is not None and found.high is not None else None
                # The interval has the unit of the value before it.
                spread = f" {interval(pair, number.unit, found.value)}".partition("]")
                value = quantity(found.value, number.unit, modelled=False)
                parts.append(
                    f"{value}{spread[0]}{spread[1]} ({results.study.workloads[workload].label} at"
                    f" {level.text})"
                )
        what = _listed(parts) if parts else "no cell is made yet"
        sentences.append(f"{_arm(results, arm)}: {_title(results, question.number)} is {what}.")
    return tuple(sentences)


def _steady(results: Results, saving: Saving) -> bool:
    return all(
        results.steady(arm, saving.workload, saving.level.text) for arm in (saving.arm, saving.against)
    )


def _title(results: Results, number: str) -> str:
    title = number_of(number).title
    title = title if title[:2].isupper() else title[:1].lower() + title[1:]
    return f"simulated {title}" if results.simulated else title


def _arm(results: Results, name: str) -> str:
    arm = results.study.arms.get(name)
    return arm.label if arm is not None else name


def _change(ratio: float) -> str:
    if ratio >= 2:
        return f"{ratio:.3g} times as high"
    percent = abs(ratio - 1) * 100
    if percent < 0.05:
        return "the same"
    text = f"{percent:.0f} %" if percent >= 9.5 else f"{percent:.1f} %"
    return f"{text} {'higher' if ratio >= 1 else 'lower'}"


def _spread(low: float | None, high: float | None) -> str:
    """The interval of the change in percent; of the ratio where that is large."""
    if low is None or high is None:
        return ""
    if high >= 3:
        return f" [{low:.3g}×, {high:.3g}×]"
    return f" [{(low - 1) * 100:+.1f}, {(high - 1) * 100:+.1f}]"


def _listed(parts: Sequence[str]) -> str:
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} and {parts[-1]}"
