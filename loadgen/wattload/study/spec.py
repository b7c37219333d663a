"""The study file: what is compared, over what, what is asked of it. docs/how-to/study.md describes it.

Everything that can be wrong with it is said before a server is started.
"""

from __future__ import annotations

import difflib
import re
import shlex
import sys
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from wattload import config as configuration
from wattload.config import RunConfig
from wattload.errors import InputError
from wattload.options import PositiveSeconds, Seconds
from wattload.rundir.numbers import NUMBERS, number_of
from wattload.schedule.build import load_streams, plan
from wattload.schedule.images import check_images
from wattload.study.levels import Level, parse_level

STUDY_SUFFIX = ".toml"
ENERGY_PER_REQUEST = "energy.per_request_joules.mean"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# A variable may hold others, these so deep.
_DEPTH = 3
_PLACE = re.compile(r"\{([a-z][a-z0-9_]*)\}")
# What the study itself puts in the place of {name}, beside the file's own variables.
OWN_PLACES = frozenset({"port", "url", "folder", "python", "here"})
# Settings of a run that a study decides.
_DECIDED = frozenset(
    {"url", "out", "name", "seed", "rate", "master", "expect_workers", "master_bind_host", "master_port"}
    | {"assertions", "metrics_port", "push_gateway"}
)
_TABLES = {"arms": "arm", "workloads": "workload", "questions": "question"}


def _words(value: object) -> object:
    if isinstance(value, str):
        try:
            return tuple(shlex.split(value))
        except ValueError as error:
            raise ValueError(f"{value!r} is not a command ({error})") from error
    return tuple(value) if isinstance(value, list) else value


def _named(value: object) -> object:
    if not isinstance(value, str) or _NAME.fullmatch(value) is None:
        raise ValueError(f"{value!r} is not a name: letters, digits, '.', '_' and '-' (it names a directory)")
    return value


Name = Annotated[str, BeforeValidator(_named)]
Command = Annotated[tuple[str, ...], BeforeValidator(_words), Field(min_length=1)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Program(_Table):
    """A program that is started and serves on a port. `port` None: a free one, for {port} in `command`."""

    command: Command
    port: int | None = Field(default=None, ge=1, le=65535)
    health: str = Field(default="/health", pattern="^/")
    environment: dict[str, str] = Field(default_factory=dict)
    start_timeout_seconds: PositiveSeconds = Field(default=600.0, alias="start_timeout")

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if self.port is None and "{port}" not in " ".join([*self.command, *self.environment.values()]):
            raise ValueError("needs `port`, or {port} in its command, to be reached")
        return self


class Meter(Program):
    """A meter beside the server, which answers /energy."""

    health: str = Field(default="/energy/clock", pattern="^/")


class Simulated(Program):
    """What stands in for an arm where the study is rehearsed on a simulated GPU."""

    model: str | None = None
    run: dict[str, Any] = Field(default_factory=dict)


class Arm(_Table):
    """One side of the comparison: a server as it is launched, or at a URL, and the conditions it is under."""

    name: Name
    title: str = ""
    command: Command | None = None
    url: str | None = None
    port: int | None = Field(default=None, ge=1, le=65535)
    health: str = Field(default="/health", pattern="^/")
    environment: dict[str, str] = Field(default_factory=dict)
    start_timeout_seconds: PositiveSeconds = Field(default=600.0, alias="start_timeout")
    model: str | None = None
    energy: str | None = None
    meter: Meter | None = None
    requires: Command | None = None
    setup: list[Command] = Field(default_factory=list)
    teardown: list[Command] = Field(default_factory=list)
    check: Command | None = None
    run: dict[str, Any] = Field(default_factory=dict)
    simulated: Simulated | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.command is None) == (self.url is None):
            raise ValueError("needs either `command` (a server to launch) or `url` (one that runs)")
        if self.meter is not None and self.energy is not None:
            raise ValueError("`meter` and `energy` are both given; a meter that is launched is asked")
        if self.setup and not (self.teardown and self.check):
            raise ValueError("`setup` needs `teardown`, and `check` to see that it was undone")
        if not self.setup and (self.teardown or self.check):
            raise ValueError("`teardown` and `check` belong to `setup`, which is not given")
        if self.command is not None:
            self.program()
        return self

    @property
    def label(self) -> str:
        return self.title or self.name

    def program(self) -> Program:
        """The server to launch; only for an arm with a command."""
        assert self.command is not None
        return Program(
            command=self.command,
            port=self.port,
            health=self.health,
            environment=self.environment,
            start_timeout=self.start_timeout_seconds,
        )

    def rehearsed(self) -> Arm | None:
        """The arm on the simulated GPU, None where nothing stands in for it."""
        if self.simulated is None:
            return None
        there = self.simulated
        kept = {name: getattr(there, name) for name in Program.model_fields}
        return Arm(
            name=self.name,
            title=self.title,
            model=there.model,
            run={**self.run, **there.run},
            **kept,
        )


class Workload(_Table):
    """What is sent, and how hard it is driven. `capacity_rps` is what shares (`50%`) are of."""

    name: Name
    title: str = ""
    rates: list[float | str] = Field(min_length=1)
    capacity_rps: float | None = Field(default=None, gt=0, alias="capacity")
    run: dict[str, Any] = Field(default_factory=dict)

    @property
    def label(self) -> str:
        return self.title or self.name

    def levels(self) -> tuple[Level, ...]:
        """Raises ValueError with the rest of a sentence."""
        found = tuple(parse_level(rate, self.capacity_rps) for rate in self.rates)
        texts = [level.text for level in found]
        for text in texts:
            if texts.count(text) > 1:
                raise ValueError(f"the rate {text} is there twice")
        return found

    @model_validator(mode="after")
    def _levels_are_known(self) -> Self:
        self.levels()
        return self


class Question(_Table):
    """What is asked of the result. Each arm of `arms` against `against`, or each rate against `against_rate`.

    `paper` is what the paper said, and `source` where.
    """

    text: str = Field(min_length=1)
    number: str = ENERGY_PER_REQUEST
    arms: list[str] = Field(default_factory=list)
    against: str | None = None
    rates: list[float | str] = Field(default_factory=list)
    against_rate: float | str | None = None
    workloads: list[str] = Field(default_factory=list)
    paper: str = ""
    source: str = ""


class Head(_Table):
    """The table [study]."""

    name: Name
    title: str = Field(min_length=1)
    about: str = ""
    baseline: str
    seed: int = Field(default=1, ge=0, le=2**31)
    repeats: int = Field(default=3, ge=1, le=100)
    block_cells: int | None = Field(default=None, ge=1)
    server_warmup_seconds: Seconds = Field(default=10.0, alias="server_warmup")
    cooldown_seconds: Seconds = Field(default=30.0, alias="cooldown")
    cooldown_tolerance: float = Field(default=0.05, ge=0, le=1)
    max_failed: float = Field(default=0.01, ge=0, le=1)
    prepare: list[Command] = Field(default_factory=list)


class Rehearsal(_Table):
    """The table [simulated]: what is different where the study is rehearsed on a simulated GPU."""

    repeats: int | None = Field(default=None, ge=1, le=100)
    server_warmup_seconds: Seconds = Field(default=0.0, alias="server_warmup")
    rates: dict[str, list[float | str]] = Field(default_factory=dict)
    run: dict[str, Any] = Field(default_factory=dict)


class StudyFile(_Table):
    """A study file as it was written."""

    study: Head
    run: dict[str, Any] = Field(default_factory=dict)
    variables: dict[str, str] = Field(default_factory=dict)
    environment: dict[str, str] = Field(default_factory=dict)
    workloads: list[Workload] = Field(min_length=1, alias="workload")
    arms: list[Arm] = Field(min_length=1, alias="arm")
    questions: list[Question] = Field(default_factory=list, alias="question")
    simulated: Rehearsal | None = None


@dataclass(frozen=True)
class Study:
    """A study that has been checked. `folder` is where its file lies.

    `left_out` names the arms that have no stand-in in a rehearsal.
    """

    file: StudyFile
    folder: Path
    text: str
    simulated: bool
    variables: Mapping[str, str]
    left_out: tuple[str, ...] = ()

    @property
    def head(self) -> Head:
        return self.file.study

    @property
    def name(self) -> str:
        return self.head.name

    @property
    def arms(self) -> dict[str, Arm]:
        return {arm.name: arm for arm in self.file.arms}

    @property
    def workloads(self) -> dict[str, Workload]:
        return {workload.name: workload for workload in self.file.workloads}

    @property
    def baseline(self) -> str:
        return self.head.baseline

    def settings(self, arm: Arm, workload: Workload, level: Level) -> dict[str, Any]:
        """The settings of a run of these, but for what is known only when it is made (url, seed, out)."""
        merged = level.over({**self.file.run, **workload.run, **arm.run})
        given = {name: self.filled(value) for name, value in merged.items() if value is not None}
        beside = self.folder / str(given.get("trace", ""))
        if "trace" in given and beside.is_file():
            given["trace"] = str(beside)
        for name in ("model", "energy"):
            if getattr(arm, name) is not None:
                given[name] = self.filled(getattr(arm, name))
        return {"report": False, "progress": "none", **given}

    def filled(self, value: Any, **own: str) -> Any:
        """`value` with the variables, and those of `own`, in the place of {name}; others stay.

        A variable may hold others.
        """
        if not isinstance(value, str):
            return value
        known = {"here": str(self.folder), "python": sys.executable, **self.variables, **own}
        for _ in range(_DEPTH):
            value = _PLACE.sub(lambda found: known.get(found[1], found[0]), value)
        return value

    def words(self, command: Iterable[str], **own: str) -> tuple[str, ...]:
        """The words of a command, filled; a word that is a variable alone may stand for several."""
        found: list[str] = []
        for word in command:
            alone = _PLACE.fullmatch(word)
            filled = self.filled(word, **own)
            several = alone is not None and alone[1] in self.variables
            found += shlex.split(filled) if several else [filled]
        return tuple(found)

    def as_dict(self) -> dict[str, Any]:
        """What the cells depend on, for a directory to be continued with the same."""
        dumped = self.file.model_dump(mode="json", by_alias=True)
        return {
            "name": self.name,
            "simulated": self.simulated,
            "seed": self.head.seed,
            "run": dumped["run"],
            "environment": dumped["environment"],
            "arms": {arm["name"]: arm for arm in dumped["arm"]},
            "workloads": {w["name"]: {**w, "rates": None} for w in dumped["workload"]},
        }


def load_study(
    path: Path,
    *,
    simulated: bool = False,
    variables: Mapping[str, str] | None = None,
    traces: bool = True,
    where: Path | None = None,
) -> Study:
    """The study of a file, checked. Raises InputError: the file, the table, the key, and what is wrong.

    `simulated`: its rehearsal. `variables` win over the file's own. `traces`: also read the workloads, which
    a study that is only looked at need not have. `where`: the folder that its paths are relative to.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8"
        raise InputError(f"{path}: cannot be read ({reason})") from error
    try:
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not TOML ({error})") from error
    try:
        file = _parsed(values)
        left_out: tuple[str, ...] = ()
        if simulated:
            file, left_out = _rehearsal(file)
        known = {**file.variables, **(variables or {})}
        study = Study(file, where or path.parent, text, simulated, known, left_out)
        _check(study, set(file.variables), variables or {}, traces=traces)
    except ValueError as error:
        # Keys of a file stand in quotes: on the command line, backticks would make flags of them.
        raise InputError(f"{path}: {error}".replace("`", "'")) from error
    return study


def _parsed(values: dict[str, Any]) -> StudyFile:
    try:
        return StudyFile(**values)
    except ValidationError as error:
        # A key that is not known says more than one that is missing for it.
        found = error.errors()
        first = next((each for each in found if each["type"] == "extra_forbidden"), found[0])
        raise ValueError(_sentence(values, first["loc"], first)) from error
    except InputError as error:
        raise ValueError(str(error)) from error


def _sentence(values: Any, location: tuple[Any, ...], error: Any) -> str:
    """One sentence about the first thing that pydantic found, with the table and the name of the entry."""
    where: list[str] = []
    here: Any = values
    for part in location:
        if isinstance(part, int):
            entry = here[part] if isinstance(here, list) and part < len(here) else None
            name = entry.get("name") if isinstance(entry, dict) else None
            where.append(f"number {part + 1}" + (f" ({name})" if isinstance(name, str) else ""))
            here = entry
        else:
            where.append(str(part))
            here = here.get(part) if isinstance(here, dict) else None
    place = " ".join(where[:-1])
    key = where[-1] if where else ""
    if error["type"] == "extra_forbidden":
        close = difflib.get_close_matches(key, _keys(location[:-1]), 1)
        hint = f"; did you mean `{close[0]}`?" if close else ""
        return f"{f'[{place}] ' if place else ''}has an unknown key `{key}`{hint}"
    if error["type"] == "missing":
        return f"{f'[{place}] ' if place else ''}lacks `{key}`"
    cause = error.get("ctx", {}).get("error")
    reason = str(cause) if cause is not None else error["msg"].replace("Input should", "must")
    shown = f"[{place}] {key}" if place else f"[{key}]"
    return f"{shown}: {reason}"


def _keys(location: tuple[Any, ...]) -> list[str]:
    """The keys of the table at a place of the file."""
    model: type[BaseModel] | None = StudyFile
    for part in location:
        if isinstance(part, int) or model is None:
            continue
        names = {info.alias or name: info for name, info in model.model_fields.items()}
        kinds = _models(names[part].annotation) if part in names else []
        model = kinds[0] if kinds else None
    return [info.alias or name for name, info in model.model_fields.items()] if model is not None else []


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [kind for part in getattr(annotation, "__args__", ()) for kind in _models(part)]


def _rehearsal(file: StudyFile) -> tuple[StudyFile, tuple[str, ...]]:
    """The file as it is rehearsed, and the arms that have no stand-in. Raises ValueError where none has."""
    arms = {arm.name: arm.rehearsed() for arm in file.arms}
    there = [arm for arm in arms.values() if arm is not None]
    if not there:
        raise ValueError("no arm has `simulated`, so there is nothing to rehearse")
    how = file.simulated or Rehearsal()
    known = {arm.name for arm in there}
    head = file.study.model_copy(
        update={
            "repeats": how.repeats or file.study.repeats,
            "server_warmup_seconds": how.server_warmup_seconds,
            "prepare": [],
            "baseline": file.study.baseline if file.study.baseline in known else there[0].name,
        }
    )
    for name in how.rates:
        if name not in {workload.name for workload in file.workloads}:
            raise ValueError(f"[simulated] rates: there is no workload {name!r}")
    workloads = [
        Workload(**{**w.model_dump(by_alias=True), "rates": how.rates.get(w.name, w.rates)})
        for w in file.workloads
    ]
    questions = [
        question.model_copy(update={"arms": [name for name in question.arms if name in known]})
        for question in file.questions
        if (not question.arms or set(question.arms) & known) and (question.against or head.baseline) in known
    ]
    changed = file.model_copy(
        update={
            "study": head,
            "arms": there,
            "workloads": workloads,
            "questions": questions,
            "run": {**file.run, **how.run},
        }
    )
    return changed, tuple(name for name, arm in arms.items() if arm is None)


def _check(study: Study, own: set[str], given: Mapping[str, str], *, traces: bool) -> None:
    """Raises ValueError with the rest of a sentence."""
    for kind, names in (
        ("arm", [arm.name for arm in study.file.arms]),
        ("workload", [workload.name for workload in study.file.workloads]),
    ):
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"the {kind} {name!r} is there twice")
    if study.baseline not in study.arms:
        raise ValueError(
            f"[study] baseline: there is no arm {study.baseline!r}; the arms are {', '.join(study.arms)}"
        )
    for name in (*own, *given):
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name in OWN_PLACES:
            raise ValueError(f"[variables] {name!r} cannot be the name of a variable")
    unknown = sorted(set(given) - own)
    if unknown:
        raise ValueError(f"--set {unknown[0]}: [variables] has no such name")
    _check_places(study)
    _check_settings(study)
    for number, question in enumerate(study.file.questions, 1):
        _check_question(study, question, f"[question number {number}]")
    if traces:
        _check_traces(study)


def _check_places(study: Study) -> None:
    known = OWN_PLACES | set(study.variables)
    shared = [*study.file.environment.values(), *study.variables.values()]
    shared += [word for command in study.head.prepare for word in command]
    for arm in study.file.arms:
        texts: list[str] = [*arm.environment.values(), arm.url or "", arm.energy or "", arm.model or ""]
        commands = [arm.command, arm.check, arm.requires, *arm.setup, *arm.teardown]
        if arm.meter is not None:
            commands.append(arm.meter.command)
            texts += arm.meter.environment.values()
        texts += [word for command in commands for word in command or ()]
        for text in [*shared, *texts]:
            for place in _PLACE.findall(text):
                if place not in known:
                    raise ValueError(
                        f"[arm {arm.name}] {{{place}}} is no variable; [variables] and"
                        f" {', '.join(sorted(OWN_PLACES))} are known"
                    )


def _check_settings(study: Study) -> None:
    tables: list[tuple[str, Mapping[str, Any]]] = [("[run]", study.file.run)]
    tables += [(f"[workload {w.name}] run", w.run) for w in study.file.workloads]
    tables += [(f"[arm {a.name}] run", a.run) for a in study.file.arms]
    for where, table in tables:
        for name in table:
            if name in _DECIDED:
                raise ValueError(f"{where}: `{name}` is decided by the study")
            if name not in configuration.SETTINGS:
                close = difflib.get_close_matches(name, configuration.SETTINGS, 1)
                hint = f"; did you mean `{close[0]}`?" if close else ""
                raise ValueError(f"{where}: `{name}` is not a setting of a run{hint}")
    for arm in study.file.arms:
        for workload in study.file.workloads:
            for level in workload.levels():
                where = f"{arm.name}, {workload.name} at {level.text}"
                try:
                    config = _config(study, arm, workload, level)
                except InputError as error:
                    raise ValueError(f"{where}: {error}") from error
                timed = config.schedule.duration_seconds is not None
                if not (timed or config.schedule.requests is not None):
                    needed = "`requests`, or offline:N," if level.at_once else "`duration` or `requests`"
                    raise ValueError(f"{where}: needs {needed} to have an end")


def _config(study: Study, arm: Arm, workload: Workload, level: Level) -> RunConfig:
    settings = study.settings(arm, workload, level)
    return RunConfig.of({**settings, "url": "http://127.0.0.1:1", "seed": study.head.seed})


def _check_question(study: Study, question: Question, where: str) -> None:
    try:
        number_of(question.number)
    except KeyError:
        close = difflib.get_close_matches(question.number, [n.path for n in NUMBERS], 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"{where} number: run.json has no number {question.number!r}{hint}") from None
    against = question.against or study.baseline
    _known(where, "arm", [*question.arms, against], study.arms)
    _known(where, "workload", question.workloads, study.workloads)
    if question.against is not None and question.against in question.arms:
        raise ValueError(f"{where} compares {question.against} with itself")
    if question.against_rate is not None and question.against is not None:
        raise ValueError(f"{where} has both `against` and `against_rate`")
    for rate in [*question.rates, *([question.against_rate] if question.against_rate is not None else [])]:
        if not any(_has_level(w, rate) for w in study.file.workloads):
            raise ValueError(f"{where}: no workload has the rate {rate!r}")


def _known(where: str, kind: str, names: Iterable[str], known: Iterable[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"{where}: there is no {kind} {name!r}")


def level_of(workload: Workload, rate: float | str) -> Level | None:
    """The workload's level that the file writes as `rate`, None where it has none."""
    try:
        wanted = parse_level(rate, workload.capacity_rps)
    except ValueError:
        return None
    return next((level for level in workload.levels() if level.text == wanted.text), None)


def _has_level(workload: Workload, rate: float | str) -> bool:
    return level_of(workload, rate) is not None


def _check_traces(study: Study) -> None:
    arm = study.arms[study.baseline]
    for workload in study.file.workloads:
        for level in workload.levels():
            config = _config(study, arm, workload, level)
            try:
                streams = load_streams(config.workload, config.reading)
                check_images(
                    config.prompts.image,
                    config.endpoint.endpoint().shape,
                    streams.traces,
                    server_history=config.schedule.history == "server",
                )
                plan(streams, config.schedule)
            except InputError as error:
                raise ValueError(f"{workload.name} at {level.text}: {error}") from error
