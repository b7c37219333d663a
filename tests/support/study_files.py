"""Study files for tests, and what stands in for the load of a cell."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from synthetic_run import Synthetic
from wattload.analysis.compute import finish, load_run
from wattload.rundir.run import Run
from wattload.study.spec import Study, load_study

SERVER = Path(__file__).with_name("tiny_server.py")
TINY = f"{{python}} {SERVER} --port {{port}}"

BASE = """
[study]
name = "batching"
title = "What does a limit cost?"
baseline = "free"
repeats = 2
seed = 3
server_warmup = 0
cooldown = 0
{study}

[run]
arrivals = "poisson"
duration = "4s"
energy = "none"

[[workload]]
name = "conv"
rates = [2, 8]
run = {{ trace = "conv" }}
{workload}

[[arm]]
name = "free"
command = "{tiny}"
{free}

[[arm]]
name = "tight"
command = "{tiny}"
{tight}
{more}
"""


def study_text(**parts: str) -> str:
    """A small study of two arms; `parts` are lines put into its tables."""
    names = ("study", "workload", "free", "tight", "more")
    return BASE.format(tiny=TINY, **{name: parts.get(name, "") for name in names})


def study_of(folder: Path, text: str | None = None, **options: Any) -> Study:
    """The study of a text, as a file in `folder`."""
    path = folder / "study.toml"
    path.write_text(text if text is not None else study_text(), encoding="utf-8")
    return load_study(path, **options)


class FakeLoad:
    """Stands in for `launch.run_settings`: copies a run that was made once, and calls `during` first."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.made: list[Mapping[str, Any]] = []
        self.during: Callable[[Mapping[str, Any]], Synthetic | None] = lambda _settings: None

    def __call__(self, settings: Mapping[str, Any], *, over: Callable[[], bool] | None = None) -> Run:
        self.made.append(settings)
        wanted = self.during(settings) or Synthetic(rate=8.0, duration=8.0, warmup=1.0, gaps=False)
        template = self._folder / f"template-{abs(hash(repr(wanted)))}"
        if not template.exists():
            finish(wanted.write(template))
        out = Path(str(settings["out"]))
        shutil.copytree(template, out)
        return load_run(out)
