"""`wattload study STUDY.toml`: arms compared over workloads, rates and repeats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from wattload.errors import InputError, RunInvalid
from wattload.rundir.directory import read_json
from wattload.study.conduct import Conductor, Left, left, pace_of, remaining
from wattload.study.design import blocks, spoken
from wattload.study.directory import StudyDir
from wattload.study.spec import Study, load_study
from wattmeter.standard_streams import say

DEMO = "demo"


def register(app: typer.Typer) -> None:
    app.command("study")(study)


def study(  # noqa: PLR0917 - options of a command
    file: Annotated[
        str,
        typer.Argument(
            metavar="STUDY",
            help="A study file (docs/how-to/study.md), the directory of an earlier study, or demo.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="The directory of the study; one that it holds is continued. Default: runs/study-NAME."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and what is left of it; start nothing.")
    ] = False,
    until_seconds: Annotated[
        float | None,
        typer.Option(min=1, help="End within this many seconds: begin only what fits, as on a lent GPU."),
    ] = None,
    until_repeat: Annotated[
        int | None,
        typer.Option(min=1, help="End after this repeat; another call without it makes the others."),
    ] = None,
    simulated: Annotated[
        bool, typer.Option("--simulated", help="Rehearse on simulated GPUs: each arm's stand-in.")
    ] = False,
    values: Annotated[
        list[str] | None,
        typer.Option("--set", help="A variable of the file, as NAME=VALUE; may be repeated."),
    ] = None,
    json_output: Annotated[
        bool, typer.Option("--json", help="Print the results as JSON; progress goes to standard error.")
    ] = False,
) -> None:
    """Compare servers over workloads, rates and repeats: energy and latency by arm, with intervals.

    The same command with the same --out continues an interrupted study. `wattload study demo` shows one on
    simulated GPUs in under two minutes.
    """
    if file != DEMO and Path(file).is_dir():
        if dry_run or simulated or values or (until_seconds, until_repeat) != (None, None):
            raise InputError(f"{file}: is a study that was made; a directory is only looked at")
        _looked_at(Path(file), json_output=json_output)
        return
    path = Path(__file__).parents[1] / "study" / "demo.toml" if file == DEMO else Path(file)
    wanted = load_study(path, simulated=simulated, variables=_variables(values or []))
    name = f"study-{wanted.name}{'-simulated' if wanted.simulated else ''}"
    folder = StudyDir(out or Path("runs") / name)
    if dry_run:
        folder.check_same(wanted)
        _print_plan(wanted, folder, json_output=json_output)
        return
    folder.begin(wanted)
    with folder.locked():
        found = _made(wanted, folder, until_seconds, until_repeat)
        shown = _results(wanted, folder, found, json_output=json_output)
    if not json_output:
        typer.echo(shown)
    if found.given_up:
        raise RunInvalid("; ".join(found.given_up.values()))


def _made(wanted: Study, folder: StudyDir, until_seconds: float | None, until_repeat: int | None) -> Left:
    for arm in wanted.left_out:
        _say(f"{arm} is left out: nothing stands in for it on a simulated GPU")
    if wanted.simulated:
        _say("simulated GPUs: no sensor reads this energy")
    conductor = Conductor(wanted, folder, say=_say, until_seconds=until_seconds, until_repeat=until_repeat)
    try:
        return conductor.run()
    except KeyboardInterrupt:
        found = left(wanted, folder, blocks(wanted))
        _results(wanted, folder, found, json_output=False)
        _say(f"{found.sentence()}; the same command with --out {folder.path} continues it")
        raise


def _results(wanted: Study, folder: StudyDir, found: Left, *, json_output: bool) -> str:
    """Writes the results of what is made, and gives what is said of them."""
    from wattload.study.answers import answers
    from wattload.study.results import Results
    from wattload.study.write import write_results

    results = Results.of(wanted, folder.path)
    data = write_results(results, folder.path, found.sentence())
    if json_output:
        state = {
            "cells": found.of,
            "left": found.cells,
            "left_seconds": found.seconds,
            "given_up": found.given_up,
            "waiting": found.waiting,
        }
        typer.echo(json.dumps({**data, "progress": state}, indent=1))
    lines = []
    for answer in answers(results):
        lines += ["", answer.question.text, *(f"  {sentence}" for sentence in answer.sentences)]
        if answer.question.paper:
            lines.append(f"  Beside it: {answer.question.paper}")
    lines += ["", found.sentence()]
    lines += [f"{arm} waits: {why}" for arm, why in found.waiting.items()]
    if found.cells:
        lines.append(f"the same command with --out {folder.path} continues the study")
    lines.append(f"page: {folder.path / 'study.html'}   table: {folder.path / 'results.csv'}")
    return "\n".join(lines)


def _looked_at(path: Path, *, json_output: bool) -> None:
    """Makes the results of a study's directory again."""
    folder = StudyDir(path)
    if not folder.kept_path.exists():
        raise InputError(f"{path}: holds no study")
    kept = read_json(folder.kept_path)
    wanted = load_study(folder.file_path, simulated=bool(kept.get("simulated")), traces=False)
    shown = _results(wanted, folder, left(wanted, folder, blocks(wanted)), json_output=json_output)
    if not json_output:
        typer.echo(shown)


def _print_plan(wanted: Study, folder: StudyDir, *, json_output: bool) -> None:
    plan = blocks(wanted)
    open_blocks = {block.number: block for block in remaining(wanted, folder, plan)}
    pace = pace_of(wanted, folder)
    found = left(wanted, folder, plan)
    rows: list[dict[str, Any]] = [
        {
            "block": block.number,
            "row": block.row,
            "arm": block.arm,
            "repeat": block.cells[0].repeat,
            "cells": [f"{cell.workload} at {cell.level.text}" for cell in block.cells],
            "left": len(open_blocks[block.number].cells) if block.number in open_blocks else 0,
            "seconds": pace.block(wanted, block.arm, block.cells),
        }
        for block in plan
    ]
    if json_output:
        facts = {
            "schema": "wattload.study_plan/1",
            "study": wanted.name,
            "simulated": wanted.simulated,
            "left_out": list(wanted.left_out),
            "cells": found.of,
            "left": found.cells,
            "left_seconds": found.seconds,
            "blocks": rows,
        }
        typer.echo(json.dumps(facts, indent=1))
        return
    typer.echo(f"{wanted.head.title}")
    typer.echo(
        f"{len(wanted.arms)} arms, {len(plan)} blocks, {found.of} cells; baseline {wanted.baseline};"
        f" {wanted.head.repeats} repeats{'; simulated' if wanted.simulated else ''}"
    )
    for arm in wanted.left_out:
        typer.echo(f"{arm} is left out: nothing stands in for it on a simulated GPU")
    for row in rows:
        state = "" if row["left"] else "  made"
        if 0 < row["left"] < len(row["cells"]):
            state = f"  {row['left']} left"
        typer.echo(
            f"  block {row['block']:>3}  repeat {row['repeat']}  {row['arm']:<20} {', '.join(row['cells'])}"
            f"  ({spoken(row['seconds'])}){state}"
        )
    typer.echo(found.sentence())


def _variables(values: list[str]) -> dict[str, str]:
    found = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set {text}: write NAME=VALUE")
        found[name.strip()] = value
    return found


def _say(text: str) -> None:
    say(text, error=True)
