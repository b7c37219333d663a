"""A study is made: block after block, cell after cell, until all are there or the time is up.

Whatever ends it (a budget, Ctrl-C, kill -9, a machine that goes away), the same command continues it.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wattload import launch
from wattload.clock import unix_now
from wattload.config import RunConfig
from wattload.errors import InputError, RunInvalid
from wattload.rundir.directory import RunDir
from wattload.rundir.numbers import headline
from wattload.rundir.result import RunJson
from wattload.rundir.run import Run
from wattload.study import conditions
from wattload.study.conditions import ConditionsFailed
from wattload.study.design import (
    SERVER_STOP_SECONDS,
    Block,
    Cell,
    Pace,
    blocks,
    load_seconds,
    spoken,
)
from wattload.study.directory import CellFacts, StudyDir
from wattload.study.program import (
    Identity,
    ProgramFailed,
    Running,
    await_health,
    free_port,
    start,
    this_boot,
)
from wattload.study.server import Server
from wattload.study.spec import Arm, Program, Study

# An invalid cell is repeated once.
ATTEMPTS = 2
# A server that does not come up is tried so many times in one call, and then given up until the next.
STARTS = 2
# Left at the end of a budget for the results.
_RESERVE_SECONDS = 10.0
_LAST_MOMENTS_SECONDS = 1.0
# Not a failure of the server's: what a load that is over was not answered in time.
_NOT_FAILED = frozenset({"aborted", "unsent"})

Say = Callable[[str], None]


@dataclass(slots=True)
class Left:
    """What is still to be made."""

    cells: int
    of: int
    seconds: float
    given_up: dict[str, str] = field(default_factory=dict)
    waiting: dict[str, str] = field(default_factory=dict)
    invalid: int = 0

    def sentence(self) -> str:
        if not self.cells:
            kept = f", {self.invalid} of them not valid and kept with their reasons" if self.invalid else ""
            return f"all {self.of} cells are made{kept}"
        made = self.of - self.cells
        return f"{made} of {self.of} cells are made; {self.cells} left, about {spoken(self.seconds)}"


class Budget:
    """How long this call may take; None: as long as it takes."""

    def __init__(self, seconds: float | None, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._end = None if seconds is None else clock() + seconds

    def fits(self, seconds: float) -> bool:
        return self._end is None or self._clock() + seconds + _RESERVE_SECONDS <= self._end


def remaining(study: Study, folder: StudyDir, plan: list[Block]) -> list[Block]:
    """The blocks with what is not made of them."""
    found = []
    for block in plan:
        cells = tuple(cell for cell in block.cells if folder.facts(cell) is None)
        if cells:
            found.append(Block(block.number, block.row, block.arm, cells))
    return found


def pace_of(study: Study, folder: StudyDir) -> Pace:
    """How long things take here, from what the journal has of them."""
    overheads, starts = [], dict[str, list[float]]()
    for entry in folder.journal():
        if entry["event"] == "cell":
            overheads.append(max(0.0, entry["seconds"] - entry["load_seconds"]))
        elif entry["event"] == "server":
            starts.setdefault(entry["arm"], []).append(entry["seconds"])
    return Pace.of(study, overheads, starts)


def left(study: Study, folder: StudyDir, plan: list[Block]) -> Left:
    """What is left of a study, and how long it will take."""
    open_blocks = remaining(study, folder, plan)
    pace = pace_of(study, folder)
    kept = [facts for block in plan for c in block.cells if (facts := folder.facts(c)) is not None]
    return Left(
        cells=sum(len(block.cells) for block in open_blocks),
        of=sum(len(block.cells) for block in plan),
        seconds=sum(pace.block(study, block.arm, block.cells) for block in open_blocks),
        invalid=sum(not facts.valid for facts in kept),
    )


class Conductor:
    """Makes the cells of a study in `folder`, which `StudyDir.begin` has made."""

    def __init__(
        self,
        study: Study,
        folder: StudyDir,
        *,
        say: Say,
        until_seconds: float | None = None,
        until_repeat: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._study, self._folder, self._say, self._clock = study, folder, say, clock
        self._budget, self._until_repeat = Budget(until_seconds, clock), until_repeat
        self._plan = blocks(study)
        self._given_up: dict[str, str] = {}
        self._waiting: dict[str, str] = {}
        self._open: dict[str, Any] = {}

    def run(self) -> Left:
        """Makes what is left, as far as the budget goes. Raises InputError for what cannot be begun at all,
        RunInvalid where an arm's conditions could not be undone.
        """
        self._undo_what_is_open()
        for command in self._study.head.prepare:
            self._prepare(command)
        begun = False
        for block in remaining(self._study, self._folder, self._plan):
            if self._until_repeat is not None and block.cells[0].repeat > self._until_repeat:
                self._say(f"repeats after {self._until_repeat} are left for another call (--until-repeat)")
                break
            if block.arm in self._given_up or self._must_wait(block.arm):
                continue
            pace = self._pace()
            needed = pace.block(self._study, block.arm, block.cells)
            if not self._budget.fits(needed):
                first = pace.block(self._study, block.arm, block.cells[:1])
                if begun or not self._budget.fits(first):
                    self._say(f"the time left is too short for the next block ({spoken(needed)})")
                    break
                self._say(
                    f"a block of {block.arm} takes about {spoken(needed)}, longer than the time given: what"
                    " fits is made (`block_cells` makes blocks smaller)"
                )
            begun = True
            self._block(block)
        found = left(self._study, self._folder, self._plan)
        found.given_up, found.waiting = dict(self._given_up), dict(self._waiting)
        return found

    def _prepare(self, command: tuple[str, ...]) -> None:
        words = self._study.words(command, folder=str(self._folder.path))
        try:
            conditions.perform("[study]", "prepare", words, Path.cwd())
        except ConditionsFailed as error:
            raise InputError(str(error).replace("`", "'")) from error

    def _must_wait(self, name: str) -> bool:
        """Whether the arm needs what this machine has not got."""
        needed = self._study.arms[name].requires
        if needed is None or name in self._waiting:
            return name in self._waiting
        words = self._study.words(needed)
        if conditions.holds(words, Path.cwd()):
            return False
        self._waiting[name] = f"`{' '.join(words)}` does not hold on this machine"
        self._say(f"{name} waits: {self._waiting[name]}")
        return True

    def _pace(self) -> Pace:
        return pace_of(self._study, self._folder)

    # --- a block --------------------------------------------------------------------------------------------

    def _block(self, block: Block) -> None:
        """Makes the cells of a block, as many as the budget has room for; starts the server as often as
        needed."""
        count = len(self._plan)
        self._say(f"block {block.number} of {count}: {block.arm}, {len(block.cells)} cells")
        arm = self._study.arms[block.arm]
        todo = list(block.cells)
        starts = 0
        with self._conditions(arm):
            while todo and block.arm not in self._given_up:
                try:
                    with self._serving(arm, block) as server:
                        starts = 0
                        self._warm(server, todo[0], block)
                        while todo:
                            pace = self._pace().cell(self._study, todo[0]) + SERVER_STOP_SECONDS
                            if not self._budget.fits(pace):
                                self._say(f"the time left is too short for another cell ({spoken(pace)})")
                                return
                            if self._cell(server, todo[0], block):
                                todo.pop(0)
                            if server.trouble() is not None:
                                break
                except ProgramFailed as error:
                    starts += 1
                    self._folder.log("failed", arm=block.arm, reason=str(error))
                    self._say(str(error))
                    if starts >= STARTS:
                        self._given_up[block.arm] = str(error)

    @contextmanager
    def _conditions(self, arm: Arm) -> Iterator[None]:
        """Sets the conditions of an arm while entered. Raises RunInvalid where they are not undone."""
        if not arm.setup:
            yield
            return
        assert arm.check is not None
        setup, teardown = (self._filled_all(commands) for commands in (arm.setup, arm.teardown))
        check = self._filled_all([arm.check])[0]
        here = Path.cwd()
        try:
            before = conditions.perform(arm.name, "check", check, here)
        except ConditionsFailed as error:
            self._given_up[arm.name] = str(error)
            self._say(str(error))
            yield
            return
        undo = {"arm": arm.name, "teardown": teardown, "check": check, "before": before}
        self._remember("undo", undo)
        try:
            for command in setup:
                conditions.perform(arm.name, "setup", command, here)
            self._folder.log("setup", arm=arm.name, check=conditions.perform(arm.name, "check", check, here))
        except ConditionsFailed as error:
            self._given_up[arm.name] = str(error)
            self._say(str(error))
        try:
            yield
        finally:
            self._undo(undo)

    def _filled_all(self, commands: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
        return [self._study.words(command, folder=str(self._folder.path)) for command in commands]

    def _undo(self, undo: dict[str, Any]) -> None:
        try:
            conditions.undo(
                undo["arm"],
                [tuple(command) for command in undo["teardown"]],
                tuple(undo["check"]),
                undo["before"],
                Path.cwd(),
            )
        except ConditionsFailed as error:
            self._folder.log("not undone", arm=undo["arm"], reason=str(error))
            raise RunInvalid(
                f"{error}; the study stops here, since later cells would not be comparable"
            ) from error
        self._folder.log("undone", arm=undo["arm"])
        self._remember("undo", None)

    def _remember(self, name: str, value: Any) -> None:
        if value is None:
            self._open.pop(name, None)
        else:
            self._open[name] = value
        of_here = {"boot": this_boot(), "host": platform.node()}
        self._folder.save_open({**self._open, **of_here} if self._open else {})

    def _undo_what_is_open(self) -> None:
        """Ends the servers and undoes the conditions that an earlier call left behind, as after kill -9."""
        things = self._folder.open_things()
        same_boot = things.get("boot") == this_boot()
        for name in ("server", "meter"):
            # After a reboot, or on another machine, its id is that of another process or of none.
            if name in things and same_boot and Identity(**things[name]).end():
                self._say(f"ended the {name} that an interrupted call left running")
                self._folder.log("ended", what=name)
        if "undo" in things and not same_boot and things.get("host") != platform.node():
            arm, host = things["undo"]["arm"], things.get("host")
            self._say(f"the conditions of {arm} were left set on {host}: undo them there if it still runs")
        elif "undo" in things:
            self._open = {"undo": things["undo"]}
            self._undo(things["undo"])
        self._open = {}
        self._folder.save_open({})

    # --- its server -----------------------------------------------------------------------------------------

    @contextmanager
    def _serving(self, arm: Arm, block: Block) -> Iterator[Server]:
        """The arm's server, and its meter, running while entered. Raises ProgramFailed."""
        programs: dict[str, Running] = {}
        server: Server | None = None
        try:
            config = self._config(arm)
            energy = config.energy.energy
            if arm.meter is not None:
                programs["meter"] = self._started("meter", arm, arm.meter, block)
                energy = programs["meter"].url
            if arm.command is not None:
                programs["server"] = self._started("server", arm, arm.program(), block)
                url = programs["server"].url
            else:
                url = self._study.filled(arm.url)
            server = Server(arm, url, energy, programs, config)
            server.check()
            yield server
        finally:
            if server is not None:
                server.close()
            for name, program in reversed(programs.items()):
                program.stop()
                self._remember(name, None)

    def _config(self, arm: Arm) -> RunConfig:
        """How the arm's server and its meter are spoken to, from the settings of its runs."""
        workload = self._study.file.workloads[0]
        settings = self._study.settings(arm, workload, workload.levels()[0])
        return RunConfig.of({**settings, "url": "http://127.0.0.1"})

    def _started(self, what: str, arm: Arm, program: Program, block: Block) -> Running:
        port = program.port or free_port()
        number = len(list(self._folder.servers.glob("*.log"))) + 1
        log = self._folder.servers / f"{number:03d}-{arm.name}-{what}.log"
        own = {
            "port": str(port),
            "url": f"http://127.0.0.1:{port}",
            "folder": str(self._folder.servers.resolve() / log.stem),
        }
        words = self._study.words(program.command, **own)
        variables = {**self._study.file.environment, **program.environment}
        running = start(
            f"the {what} of {arm.name}",
            words,
            environment={name: self._study.filled(value, **own) for name, value in variables.items()},
            port=port,
            log=log,
            folder=Path.cwd(),
        )
        self._remember(what, {"pid": running.identity.pid, "started_ticks": running.identity.started_ticks})
        try:
            await_health(running, program.health, timeout_seconds=program.start_timeout_seconds)
        except BaseException:
            running.stop()
            self._remember(what, None)
            raise
        if what == "server":
            self._folder.log("server", arm=arm.name, block=block.number, seconds=running.start_seconds)
        self._say(f"the {what} of {arm.name} serves after {spoken(running.start_seconds)}")
        return running

    def _warm(self, server: Server, cell: Cell, block: Block) -> None:
        """Load that is not counted, so that the first cell does not pay for what a new server does once."""
        seconds = self._study.head.server_warmup_seconds
        if not seconds:
            return
        settings = self._settings(server, cell)
        if settings.get("duration") is not None:
            settings |= {"duration": seconds, "warmup": None}
        out = self._folder.path / "warm-ups" / f"{block.number:03d}-{block.arm}-{unix_now():.0f}"
        try:
            launch.run_settings({**settings, "out": str(out)}, over=server.over)
        except (InputError, RunInvalid) as error:
            self._say(f"the warm-up of {block.arm}: {error}")

    # --- a cell ---------------------------------------------------------------------------------------------

    def _cell(self, server: Server, cell: Cell, block: Block) -> bool:
        """Makes a cell once. True where it is made: valid, or invalid for the last time."""
        self._folder.set_aside(cell, "cut")
        attempt = self._folder.invalid_attempts(cell) + 1
        begun, unix = self._clock(), unix_now()
        cooled = server.cool_down(self._study)
        logs = {name: program.log_size() for name, program in server.programs.items()}
        made: Run | None = None
        reasons: list[str] = []
        directory = RunDir(self._folder.cell_path(cell))
        try:
            made = launch.run_settings(
                {**self._settings(server, cell), "out": str(directory.path)}, over=server.over
            )
        except (InputError, RunInvalid) as error:
            reasons = [str(error)]
        if made is not None:
            reasons = self._reasons(made.result)
        # A server that has just closed its connections may still be on its way out.
        trouble = server.trouble(wait_seconds=_LAST_MOMENTS_SECONDS if reasons else 0.0)
        if trouble is not None:
            reasons = [f"{trouble} (in this cell)"]
        elif reasons:
            reasons += server.memory_trouble(logs)
        facts = CellFacts(
            arm=cell.arm,
            workload=cell.workload,
            level=cell.level.text,
            rate_rps=cell.level.rate_rps,
            repeat=cell.repeat,
            seed=cell.seed,
            block=block.number,
            place=block.cells.index(cell) + 1,
            attempt=attempt,
            started_unix=unix,
            seconds=self._clock() - begun,
            load_seconds=load_seconds(self._study, cell),
            reasons=reasons,
            notes=[] if cooled is None or cooled.note is None else [cooled.note],
            idle_watts=None if cooled is None else cooled.idle_watts,
            start_watts=None if cooled is None else cooled.watts,
            has_run=made is not None,
        )
        self._folder.keep(cell, facts)
        self._folder.log("cell", cell=str(cell), seconds=facts.seconds, load_seconds=facts.load_seconds,
                         valid=facts.valid, attempt=attempt)  # fmt: skip
        self._tell(cell, facts, made)
        if reasons and attempt < ATTEMPTS:
            self._folder.set_aside(cell, "invalid")
            self._say("it is repeated once")
            return False
        return True

    def _settings(self, server: Server, cell: Cell) -> dict[str, Any]:
        arm, workload = self._study.arms[cell.arm], self._study.workloads[cell.workload]
        settings = self._study.settings(arm, workload, cell.level)
        settings |= {"url": server.url, "seed": cell.seed, "name": f"{cell.arm}-{cell.name}"}
        if server.energy is not None:
            settings["energy"] = server.energy
        return settings

    def _reasons(self, result: RunJson) -> list[str]:
        """Why a run that was made is not valid as a cell."""
        reasons = list(result.reasons)
        failed = {name: n for name, n in result.requests.failed.items() if name not in _NOT_FAILED}
        share = sum(failed.values()) / max(result.requests.planned, 1)
        if share > self._study.head.max_failed:
            named = ", ".join(f"{n} {name}" for name, n in sorted(failed.items()))
            reasons.append(
                f"{share:.1%} of the requests failed ({named}); `max_failed` is"
                f" {self._study.head.max_failed:.1%}"
            )
        return reasons

    def _tell(self, cell: Cell, facts: CellFacts, made: Run | None) -> None:
        if facts.valid and made is not None:
            number = headline(made.result)
            value = number.of(made.result)
            word = " simulated" if made.energy.simulated else ""
            said = f"{value:.4g} J/request{word}" if value is not None else "no energy"
        else:
            said = f"not valid: {'; '.join(facts.reasons)}"
        note = f" ({'; '.join(facts.notes)})" if facts.notes else ""
        found = left(self._study, self._folder, self._plan)
        self._say(f"{cell}: {said}{note}; {found.cells} left, about {spoken(found.seconds)}")
