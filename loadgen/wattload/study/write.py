"""The results of a study as files: the table, the savings, results.json and the page."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, FileSystemLoader

from wattload.report.formatting import digits, quantity
from wattload.report.page import environment
from wattload.rundir.numbers import number_of
from wattload.study import plots
from wattload.study.answers import Answer, answers
from wattload.study.effects import estimate
from wattload.study.results import SAVED, Results, Saving, saving_line
from wattload.study.table import write_table
from wattmeter.whole_file import write_atomically

RESULTS_SCHEMA = "wattload.study_results/1"


def write_results(results: Results, folder: Path, left: str) -> dict[str, Any]:
    """Writes every file into the study's directory, and gives what results.json has.

    `left` says what is still to be made.
    """
    found = {number: results.savings(number) for number in SAVED}
    answered = answers(results)
    data = as_dict(results, found, answered)
    if results.rows:
        write_table([row.values() for row in results.rows], folder / "results")
        write_table([saving_line(s) for each in found.values() for s in each], folder / "effects")
    write_atomically(folder / "results.json", json.dumps(data, indent=1))
    write_atomically(folder / "study.html", _page(results, found, answered, left))
    return data


def as_dict(results: Results, found: dict[str, list[Saving]], answered: list[Answer]) -> dict[str, Any]:
    """results.json."""
    study = results.study
    points = [
        {
            "number": number,
            "workload": workload.name,
            "level": level.text,
            "rate_rps": level.rate_rps,
            "arm": arm,
            "steady": results.steady(arm, workload.name, level.text),
            **point.as_dict(),
        }
        for number in plots.SHOWN
        for workload in study.file.workloads
        for level in workload.levels()
        for arm in study.arms
        if (point := results.estimate(number, arm, workload.name, level.text)) is not None
    ]
    return {
        "schema": RESULTS_SCHEMA,
        "study": study.name,
        "title": study.head.title,
        "simulated": results.simulated,
        "baseline": study.baseline,
        "cells": len(results.rows),
        "invalid": [
            {"run": str(row.path), "reasons": row.facts.reasons}
            for row in results.rows
            if not row.facts.valid
        ],
        "devices": results.devices(),
        "points": points,
        "savings": [saving_line(saving) for each in found.values() for saving in each],
        "answers": [
            {
                "question": answer.question.text,
                "answer": list(answer.sentences),
                "paper": answer.question.paper or None,
                "source": answer.question.source or None,
                "savings": [saving_line(saving) for saving in answer.savings],
            }
            for answer in answered
        ],
    }


@cache
def _environment() -> Environment:
    """The report's, with this folder's template."""
    base = environment()
    loaders = [FileSystemLoader(Path(__file__).parent), *([base.loader] if base.loader else [])]
    return base.overlay(loader=ChoiceLoader(loaders))


def _page(results: Results, found: dict[str, list[Saving]], answered: list[Answer], left: str) -> str:
    return (
        _environment()
        .get_template("study.html")
        .render(
            study=results.study,
            results=results,
            left=left,
            invalid=[row for row in results.rows if not row.facts.valid],
            notes=[row for row in results.rows if row.facts.notes or (row.run is not None and row.run.notes)],
            answers=answered,
            figures=plots.figures(results, found),
            tables=[
                (
                    number_of(number).title,
                    len([s for s in each if s.effect is not None]),
                    _lines(results, each),
                )
                for number, each in found.items()
            ],
            devices=results.devices(),
            gpus=_gpus(results),
        )
    )


def _lines(results: Results, found: list[Saving]) -> list[list[tuple[str, bool]]]:
    """(text, whether it is a number) of every cell of a table of savings."""
    lines = []
    for saving in found:
        effect = saving.effect
        if effect is None:
            continue
        unit = number_of(saving.number).unit
        values = []
        place = (saving.workload, saving.level.text)
        pair = [results.observations(saving.number, arm, *place) for arm in (saving.against, saving.arm)]
        # A repeat that one of the two lacks would show another change than that of the repeats they share.
        shared = pair[0].keys() & pair[1].keys()
        for own in pair:
            of_both = estimate([each for repeat, each in own.items() if repeat in shared])
            text = quantity(of_both.value if of_both is not None else None, unit)
            values.append(f"{text} simulated" if results.simulated else text)
        spread = (
            f"[{(effect.low - 1) * 100:+.1f}, {(effect.high - 1) * 100:+.1f}] %"
            if effect.low is not None and effect.high is not None
            else ""
        )
        sure = {None: "not known", True: "yes", False: "no"}[effect.significant]
        lines.append([
            (results.study.workloads[saving.workload].label, False),
            (saving.level.text, False),
            (results.study.arms[saving.arm].label, False),
            (values[0], True),
            (values[1], True),
            (f"{(effect.ratio - 1) * 100:+.1f} %", True),
            (spread, True),
            (_p(effect.p_adjusted), True),
            (sure, False),
            (effect.method, False),
        ])  # fmt: skip
    return lines


def _p(value: float | None) -> str:
    if value is None:
        return ""
    return "< 0.001" if value < 0.001 else digits(value, 2)


def _gpus(results: Results) -> str:
    """A sentence where arms ran on different GPUs, whose sensors may differ."""
    by_arm = results.devices()
    every = {name for names in by_arm.values() for name in names}
    if len(every) <= 1 or all(set(names) == every for names in by_arm.values()):
        return ""
    return (
        "Arms ran on different GPUs: how far their sensors differ is in the differences between arms, and"
        " in none of the intervals."
    )
