"""How many small changes of wattmeter's core do its tests notice? Prints a table, see results/mutation.md.

    python benchmarks/mutation/score.py                                   # a sample of every module
    python benchmarks/mutation/score.py --only counter split --sample 0   # all mutants of two modules
    python benchmarks/mutation/score.py --only counter --seed 2 --keep build/mutation.json

The tests of wattmeter are collected once and run once with a probe before each statement of the core, which
says what each of them executes. Then every mutant runs in a fork of that process: its function gets the
changed code, and the tests that execute the changed statement run until one fails. The module's own tests
(`test_counter*.py` of `counter.py`) run all, then those of its package and the others, the quickest first, as
far as SECONDS allow. A change of a module's constants, or of a class, is tried by a new pytest with a changed
copy of the server's packages.

A mutant is killed when a test fails, or when its tests take far longer than without it (both are counted).
Whatever else is not killed survives: none is left out for being equivalent.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import functools
import gc
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest
from mutants import Mutant, mutants, mutated

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "server" / "wattmeter"
# The most important first, of which the sample is twice as large: what reads and divides joules.
FIRST = (
    "metering/counter",
    "metering/timeline",
    "attribution/split",
    "monitor/settler",
    "monitor/windows",
    "monitor/requests",
)
MODULES = (
    *FIRST,
    "metering/device",
    "metering/sampler",
    "metering/phase_lock",
    "metering/idle_power",
    "attribution/tenants",
    "attribution/shapley",
    "monitor/inbox",
    "energy_model/step_model",
    "steps/busy",
    "steps/queue",
    "meters/base",
    "meters/rapl",
    "meters/processes",
)
PACKAGES = sorted({name.split("/")[0] for name in MODULES})
SAMPLE = 30
SEED = 1
# Of CPU of tests a mutant; tests beyond might kill it and are not asked.
SECONDS = 2.0
# A mutant may take this long beyond SLOWER times what its tests take.
GRACE_SECONDS = 5.0
SLOWER = 5.0
# What each test executes, by the content of its file and of the core.
MAP = ROOT / "build" / "mutation-map.json"
KILLED, SURVIVED, TOO_LONG, NOT_TESTED = "killed", "survived", "too long", "no test executes it"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a mutant, and the test that killed it."""

    mutant: Mutant
    outcome: str
    test: str = ""

    @property
    def killed(self) -> bool:
        return self.outcome in {KILLED, TOO_LONG}


@dataclass(frozen=True, slots=True)
class Traced:
    """What a test executes of the core: its lines by file; and how long it takes."""

    seconds: float
    lines: dict[str, set[int]]


class Trial:
    """A pytest plugin that, instead of running the collected tests, tries mutants on them."""

    def __init__(self, chosen: list[Mutant], told: Callable[[Verdict], None]) -> None:
        self.chosen = chosen
        self.told = told
        self.verdicts: list[Verdict] = []
        self._failed = ""
        self._functions: list[FunctionType] = []

    def pytest_configure(self) -> None:
        import hypothesis

        # The same examples every time, and not made small: only whether a test fails matters.
        phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
        hypothesis.settings.register_profile("mutation", derandomize=True, database=None, phases=phases)
        hypothesis.settings.load_profile("mutation")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self._failed:
            self._failed = report.nodeid

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        gc.collect()
        self._functions = [
            one
            for one in gc.get_objects()
            if isinstance(one, FunctionType) and one.__code__.co_filename.startswith(str(CORE))
        ]
        gc.freeze()
        traced = self._trace(session.items)
        seconds = sum(one.seconds for one in traced.values())
        print(f"\n{len(traced)} tests take {seconds:.0f} s", flush=True)
        for mutant in self.chosen:
            verdict = self._try(session, mutant, _covering(session.items, traced, mutant))
            self.verdicts.append(verdict)
            self.told(verdict)
        return True

    def _trace(self, items: list[pytest.Item]) -> dict[str, Traced]:
        """What each test executes: as kept of files of tests that did not change, or by running it."""
        known = json.loads(MAP.read_text("utf-8")) if MAP.exists() else {}
        core = _digest(sorted(CORE.rglob("*.py")) + sorted((ROOT / "tests" / "support").glob("*.py")))
        by_file = dict[Path, list[pytest.Item]]()
        for item in items:
            by_file.setdefault(item.path, []).append(item)
        answers = dict[str, Any]()
        for path, mine in by_file.items():
            key = f"{path.relative_to(ROOT)} {_digest([path])} {core}"
            found = known.get(key) or _in_fork(functools.partial(self._traced_here, mine), 3600.0)
            if not isinstance(found, dict):
                raise pytest.UsageError(f"without any change, a test of {path} fails: {found}")
            answers[key] = found
            MAP.parent.mkdir(exist_ok=True)
            MAP.write_text(json.dumps({**known, **answers}), "utf-8")
        return {
            name: Traced(seconds, {module: set(lines) for module, lines in by_module.items()})
            for of_file in answers.values()
            for name, (seconds, by_module) in of_file.items()
        }

    def _traced_here(self, items: list[pytest.Item]) -> object:
        seen = self._probed()
        answers = {}
        for item in items:
            for lines in seen.values():
                lines.clear()
            begun = time.process_time()
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
            if self._failed:
                return self._failed
            by_module = {path: sorted(lines) for path, lines in seen.items() if lines}
            answers[item.nodeid] = (time.process_time() - begun, by_module)
        return answers

    def _probed(self) -> dict[str, set[int]]:
        """Have every statement of the core's functions note its line when it runs, by module."""
        seen = {}
        for module in MODULES:
            path = CORE / f"{module}.py"
            tree = ast.parse(path.read_text("utf-8"))
            for node in ast.walk(tree):
                for name in ("body", "orelse", "finalbody"):
                    block = getattr(node, name, None)
                    if isinstance(block, list) and not isinstance(node, (ast.Module, ast.ClassDef)):
                        setattr(
                            node, name, [new for statement in block for new in (_probe(statement), statement)]
                        )
            _change_functions(path, ast.fix_missing_locations(tree), self._functions)
            lines = seen[str(path)] = set[int]()
            for function in self._functions:
                if function.__code__.co_filename == str(path):
                    function.__globals__["__probe__"] = lines.add
        return seen

    def _try(
        self, session: pytest.Session, mutant: Mutant, tests: list[tuple[pytest.Item, float]]
    ) -> Verdict:
        if not tests:
            return Verdict(mutant, NOT_TESTED)
        seconds = GRACE_SECONDS + SLOWER * sum(taken for _, taken in tests)
        if mutant.function_line is None:
            return _verdict(mutant, _by_new_import(mutant, [item.nodeid for item, _ in tests], 3.0 * seconds))

        def run() -> object:
            _change_functions(mutant.path, mutated(mutant), self._functions, mutant.function_line)
            for item, _ in tests:
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
                if self._failed:
                    return [self._failed]
            return []

        return _verdict(mutant, _in_fork(run, seconds))


def _digest(paths: list[Path]) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:16]


def _verdict(mutant: Mutant, failed: object) -> Verdict:
    if failed is None:
        return Verdict(mutant, TOO_LONG)
    if isinstance(failed, list) and failed:
        return Verdict(mutant, KILLED, str(failed[0]))
    return Verdict(mutant, KILLED if failed == "ended" else SURVIVED)


def _covering(
    items: list[pytest.Item], traced: dict[str, Traced], mutant: Mutant
) -> list[tuple[pytest.Item, float]]:
    """Tests that execute the mutant's statement (its module, if outside functions), and their seconds."""
    path, (low, high) = str(mutant.path), mutant.lines
    wanted = set(range(low, high + 1))
    own, package = f"/test_{mutant.path.stem}", f"/{mutant.path.parent.name}/"
    found = []
    for item in items:
        lines = traced[item.nodeid].lines.get(path, set())
        if wanted & lines or (mutant.function_line is None and (lines or package in item.nodeid)):
            found.append((item, traced[item.nodeid].seconds))

    def order(pair: tuple[pytest.Item, float]) -> tuple[bool, bool, float]:
        return own not in pair[0].nodeid, package not in pair[0].nodeid, pair[1]

    chosen, total = list[tuple[pytest.Item, float]](), 0.0
    for pair in sorted(found, key=order):
        if total + pair[1] > SECONDS and chosen and own not in pair[0].nodeid:
            continue
        chosen.append(pair)
        total += pair[1]
    return chosen


def _in_fork(work: Callable[[], object], seconds: float) -> object:
    """What `work` returned in a fork; None where it took too long, "ended" where nothing was returned."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        pid = os.fork()
        if pid == 0:
            _work_in_child(work, answer, seconds)
        deadline = time.monotonic() + 10.0 * seconds
        while True:
            ended, status, _ = os.wait4(pid, os.WNOHANG)
            if ended:
                break
            if time.monotonic() > deadline:
                os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return None
            time.sleep(0.005)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) in {signal.SIGXCPU, signal.SIGKILL}:
            return None
        return json.loads(answer.read_text("utf-8")) if answer.exists() else "ended"


def _work_in_child(work: Callable[[], object], answer: Path, seconds: float) -> None:
    code = 1
    try:
        os.setsid()
        limit = int(time.process_time() + seconds) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
        random.seed(0)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        text = json.dumps(work())
        part = answer.with_suffix(".part")
        part.write_text(text, "utf-8")
        part.rename(answer)
        code = 0
    finally:
        os._exit(code)


def _probe(statement: ast.stmt) -> ast.stmt:
    call = ast.Call(ast.Name("__probe__", ast.Load()), [ast.Constant(statement.lineno)], [])
    return ast.copy_location(ast.Expr(call), statement)


def _change_functions(
    path: Path, tree: ast.Module, functions: list[FunctionType], line: int | None = None
) -> None:
    """Give the functions of a module, or the one at `line`, the code of a tree, wherever they are known."""
    codes: dict[tuple[str, int], CodeType] = {}

    def enter(code: CodeType) -> None:
        for const in code.co_consts:
            if isinstance(const, CodeType):
                codes[const.co_qualname, const.co_firstlineno] = const
                enter(const)

    enter(compile(tree, str(path), "exec"))
    for function in functions:
        code = function.__code__
        if code.co_filename == str(path) and line in {None, code.co_firstlineno}:
            new = codes.get((code.co_qualname, code.co_firstlineno), code)
            if new.co_freevars == code.co_freevars:
                function.__code__ = new


def _by_new_import(mutant: Mutant, tests: list[str], seconds: float) -> object:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "server"
        shutil.copytree(ROOT / "server", copy, ignore=shutil.ignore_patterns("__pycache__"))
        (copy / mutant.path.relative_to(ROOT / "server")).write_text(ast.unparse(mutated(mutant)), "utf-8")
        environment = {
            **os.environ,
            "PYTHONPATH": f"{copy}:{ROOT / 'loadgen'}",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
        try:
            ended = subprocess.run(
                command,
                cwd=ROOT,
                env=environment,
                capture_output=True,
                text=True,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return None
        failed = [
            line.split()[1] for line in ended.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))
        ]
        return (failed or "ended") if ended.returncode else []


def choose(names: list[str], sample: int, seed: int) -> tuple[list[Mutant], dict[str, int]]:
    """The mutants to try, and how many there are, by module."""
    chosen, all_of = list[Mutant](), dict[str, int]()
    for name in names:
        every = mutants(CORE / f"{name}.py")
        all_of[name] = len(every)
        size = 2 * sample if name in FIRST else sample
        if sample:
            # A larger sample of the same seed begins with the smaller one.
            random.Random(f"{seed} {name}").shuffle(every)
            every = every[:size]
        chosen += every
    return chosen, all_of


def interval(killed: int, tried: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    if not tried:
        return 0.0, 1.0
    z, share = 1.96, killed / tried
    middle = (share + z * z / (2 * tried)) / (1 + z * z / tried)
    half = z / (1 + z * z / tried) * (share * (1 - share) / tried + z * z / (4 * tried * tried)) ** 0.5
    return middle - half, middle + half


def table(verdicts: list[Verdict], all_of: dict[str, int]) -> str:
    """Markdown: a row a module; the last row weighs each module with its number of mutants."""
    lines = [
        "| module | mutants | tried | killed | of them too long | survived | score | 95 % interval |",
        "|---|---|---|---|---|---|---|---|",
    ]
    weighted, variance = 0.0, 0.0
    for name, every in all_of.items():
        mine = [one for one in verdicts if one.mutant.path == CORE / f"{name}.py"]
        if not mine:
            continue
        killed = sum(one.killed for one in mine)
        low, high = interval(killed, len(mine))
        share = killed / len(mine)
        weighted += every * share
        if len(mine) < every:
            variance += every**2 * max(share * (1 - share), 0.25 / len(mine)) / len(mine)
        span = "all" if len(mine) == every else f"{100 * low:.0f} to {100 * high:.0f} %"
        too_long = sum(one.outcome == TOO_LONG for one in mine)
        lines.append(
            f"| `{name}.py` | {every} | {len(mine)} | {killed} | {too_long} | {len(mine) - killed} "
            f"| {100 * share:.0f} % | {span} |"
        )
    total = sum(all_of.values())
    killed, half = sum(one.killed for one in verdicts), 196 * variance**0.5 / total
    too_long = sum(one.outcome == TOO_LONG for one in verdicts)
    lines.append(
        f"| **the core** | {total} | {len(verdicts)} | {killed} | {too_long} | {len(verdicts) - killed} "
        f"| **{100 * weighted / total:.1f} %** | ±{half:.1f} points |"
    )
    return "\n".join(lines)


@contextlib.contextmanager
def told_to(path: Path | None, count: int) -> Iterator[Callable[[Verdict], None]]:
    """Prints each survivor as it is found, and keeps every verdict as a line of JSON."""
    number, begun = 0, time.monotonic()
    with contextlib.ExitStack() as stack:
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
        kept = stack.enter_context(path.open("w", encoding="utf-8")) if path else None

        def tell(verdict: Verdict) -> None:
            nonlocal number
            number += 1
            mutant = verdict.mutant
            where = f"{mutant.path.relative_to(CORE)}:{mutant.line}"
            if kept:
                entry = {
                    "where": where,
                    "change": mutant.change,
                    "outcome": verdict.outcome,
                    "test": verdict.test,
                    "number": mutant.number,
                    "variant": mutant.variant,
                }
                kept.write(json.dumps(entry) + "\n")
                kept.flush()
            if not verdict.killed:
                print(f"{verdict.outcome}: {where}: {mutant.change}", flush=True)
            if number % 50 == 0:
                print(f"... {number} of {count} after {time.monotonic() - begun:.0f} s", flush=True)

        yield tell


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", metavar="MODULE", help="modules of the core, by part of their path"
    )
    parser.add_argument(
        "--sample",
        type=int,
        default=SAMPLE,
        help=f"mutants a module, twice that of the first six; 0: all ({SAMPLE})",
    )
    parser.add_argument("--seed", type=int, default=SEED, help=f"of the sample ({SEED})")
    parser.add_argument("--again", type=Path, help="only what survived in this file of --keep")
    parser.add_argument("--keep", type=Path, help="every verdict, a line of JSON each")
    arguments = parser.parse_args()
    names = [name for name in MODULES if not arguments.only or any(part in name for part in arguments.only)]
    if not names:
        parser.error(f"no module of the core is called {' or '.join(arguments.only)}: {', '.join(MODULES)}")
    if arguments.again and not arguments.again.is_file():
        parser.error(f"--again: {arguments.again} is no file of --keep")
    chosen, all_of = choose(names, 0 if arguments.again else arguments.sample, arguments.seed)
    if arguments.again:
        entries = [json.loads(line) for line in arguments.again.read_text("utf-8").splitlines()]
        left = {(e["where"], e["change"]) for e in entries if e["outcome"] not in {KILLED, TOO_LONG}}
        chosen = [m for m in chosen if (f"{m.path.relative_to(CORE)}:{m.line}", m.change) in left]
    with told_to(arguments.keep, len(chosen)) as tell:
        trial = Trial(chosen, tell)
        os.chdir(ROOT)
        options = [
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:xdist",
            "-m",
            "not e2e and not vllm and not services",
        ]
        code = pytest.main(
            [*options, *(f"tests/wattmeter/{package}" for package in PACKAGES)], plugins=[trial]
        )
    if code not in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}:
        return int(code)
    print(table(trial.verdicts, all_of))
    return 0


if __name__ == "__main__":
    sys.exit(main())
