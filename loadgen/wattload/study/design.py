"""In which order the cells of a study are made, and how long that takes.

A *row* is the same few points (workload and rate) for every arm, one block an arm: so whenever a row ends,
every arm has seen the same points equally often. The order of arms is drawn once from the seed, reversed in
every second row and rotated after two, so that what drifts with time (temperature, clocks, a neighbour) falls
on all arms alike. Within a row every arm has its points in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from wattload.study.levels import Level
from wattload.study.spec import Study, Workload

# What a cell takes beside its load, and a server to start, where none has been made so far.
CELL_OVERHEAD_SECONDS = 15.0
SERVER_START_SECONDS = 90.0
SIMULATED_START_SECONDS = 4.0
SERVER_STOP_SECONDS = 4.0
SIMULATOR = ("wattserve", "sim")
# What a load without a planned length is taken to need.
UNKNOWN_LOAD_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Cell:
    """One run: an arm under a workload at a level, for the `repeat`-th time (from 1)."""

    arm: str
    workload: str
    level: Level
    repeat: int
    seed: int

    @property
    def name(self) -> str:
        """Its directory within the arm's."""
        return f"{self.workload}-{self.level.slug}-r{self.repeat}"

    @property
    def point(self) -> tuple[str, str]:
        return self.workload, self.level.text

    def __str__(self) -> str:
        return f"{self.arm}, {self.workload} at {self.level.text}, repeat {self.repeat}"


@dataclass(frozen=True, slots=True)
class Block:
    """The cells that one start of an arm's server is for."""

    number: int
    row: int
    arm: str
    cells: tuple[Cell, ...]


def blocks(study: Study) -> list[Block]:
    """Every block of the study in its order, which the seed fixes."""
    points = [(w, level) for w in study.file.workloads for level in w.levels()]
    arms = list(study.arms)
    first = [arms[i] for i in np.random.default_rng([study.head.seed, 0]).permutation(len(arms))]
    made: list[Block] = []
    row = 0
    for repeat in range(1, study.head.repeats + 1):
        order = np.random.default_rng([study.head.seed, repeat]).permutation(len(points))
        for part in _parts([points[i] for i in order], study.head.block_cells):
            turn = row // 2 % len(arms)
            turned = first[turn:] + first[:turn]
            for arm in reversed(turned) if row % 2 else turned:
                cells = tuple(
                    Cell(arm, workload.name, level, repeat, seed_of(study, repeat))
                    for workload, level in part
                )
                made.append(Block(len(made) + 1, row + 1, arm, cells))
            row += 1
    return made


def seed_of(study: Study, repeat: int) -> int:
    """The seed of a repeat's schedules: the same for every arm, so that all get equal requests."""
    return study.head.seed * 1000 + repeat


def _parts(points: list[tuple[Workload, Level]], most: int | None) -> Iterator[list[tuple[Workload, Level]]]:
    """The points in parts of nearly equal size and at most `most`."""
    count = -(-len(points) // most) if most else 1
    for part in np.array_split(np.arange(len(points)), count):
        yield [points[i] for i in part]


@dataclass(frozen=True, slots=True)
class Pace:
    """How long things take: as planned, with what was measured of cells and starts so far in its place."""

    overhead_seconds: float
    start_seconds: dict[str, float]
    warmup_seconds: float
    unknown_start_seconds: float

    @classmethod
    def of(
        cls,
        study: Study,
        overheads: Sequence[float] = (),
        starts: dict[str, list[float]] | None = None,
    ) -> Pace:
        """`overheads`: seconds of the cells made beyond their loads. `starts`: seconds of starts, by arm."""
        known = {arm: max(values[-3:]) for arm, values in (starts or {}).items() if values}
        simulators = all(arm.command is None or arm.command[:2] == SIMULATOR for arm in study.file.arms)
        guess = SIMULATED_START_SECONDS if simulators else SERVER_START_SECONDS
        return cls(
            overhead_seconds=float(np.quantile(overheads[-40:], 0.8)) if overheads else CELL_OVERHEAD_SECONDS,
            start_seconds=known,
            warmup_seconds=study.head.server_warmup_seconds,
            unknown_start_seconds=max(known.values(), default=guess),
        )

    def cell(self, study: Study, cell: Cell) -> float:
        """Seconds of one cell."""
        return load_seconds(study, cell) + self.overhead_seconds

    def start(self, study: Study, arm: str) -> float:
        """Seconds from nothing to a server that is warm."""
        warmup = self.warmup_seconds + (self.overhead_seconds if self.warmup_seconds else 0.0)
        if study.arms[arm].command is None:
            return warmup
        return self.start_seconds.get(arm, self.unknown_start_seconds) + warmup

    def block(self, study: Study, arm: str, cells: Sequence[Cell]) -> float:
        """Seconds of a block with these cells."""
        if not cells:
            return 0.0
        return self.start(study, arm) + sum(self.cell(study, c) for c in cells) + SERVER_STOP_SECONDS


def load_seconds(study: Study, cell: Cell) -> float:
    """The planned length of a cell's load."""
    from wattload.units import parse_duration

    settings = study.settings(study.arms[cell.arm], study.workloads[cell.workload], cell.level)
    duration = settings.get("duration")
    if duration is not None:
        return parse_duration(str(duration))
    requests = settings.get("requests")
    if requests is not None and cell.level.rate_rps is not None:
        return int(requests) / cell.level.rate_rps
    return UNKNOWN_LOAD_SECONDS


def spoken(seconds: float) -> str:
    """`45 s`, `12 min`, `1 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
