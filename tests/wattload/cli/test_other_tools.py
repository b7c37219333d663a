"""What people type from habit is taken, or answered with what wattload has in its place."""

from __future__ import annotations

import re
from typing import Any

import pytest

from wattload import __version__
from wattload.cli import app as cli
from wattload.cli.other_tools import COMMANDS, FLAGS
from wattload.config import SETTINGS, RunConfig
from wattload.errors import InputError
from wattload.schedule.build import build, load_streams, plan, process_of, target_rate
from wattload.schedule.options import ScheduleOptions
from wattload.traces import load as load_trace


def call(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[object, str, str]:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    said = capsys.readouterr()
    return ended.value.code, said.out, said.err


def run_options() -> set[str]:
    return {
        name
        for parameter in cli.load_command("run").params
        for name in (*parameter.opts, *parameter.secondary_opts)
    }


@pytest.mark.parametrize("flag", FLAGS)
def test_another_tools_flag_is_answered(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(["run", "http://h", f"{flag}=1"], capsys)
    assert code == 2
    assert err == f"wattload: no option {flag}: {FLAGS[flag]}\n"


def test_every_flag_named_in_an_answer_is_one_of_run() -> None:
    known = {*run_options(), "--json", "--version", "--help"}
    for advice in (*FLAGS.values(), *COMMANDS.values()):
        assert set(re.findall(r"--[a-z-]+", advice)) <= known, advice
    assert not set(FLAGS) & run_options()


@pytest.mark.parametrize("name", COMMANDS)
def test_another_tools_command_is_answered(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call([name], capsys)
    assert code == 2
    assert err == f"wattload: no command {name!r}: {COMMANDS[name]}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--durration", "5"], "did you mean --duration?"),
        (["run", "--zzz"], "`wattload run --help` lists the options"),
        (["reprot"], "did you mean report?"),
        (["zzzzz"], "`wattload --help` lists the commands"),
        (["--rate", "5"], "options follow their command"),
        (["run"], "for example: wattload run http://localhost:8000"),
        (["sweep", "--rates", "1"], "for example: wattload sweep http://localhost:8000"),
        (["run", "http://h", "--energy", "dcgm"], "dcgm+http://HOST:9400/metrics"),
        (["run", "http://h", "--energy", "prometheus"], "prometheus+http://HOST:9090"),
        (["run", "http://h", "--max-length", "4096"], "error or drop"),
        (["run", "http://h", "--trace", "azure-2023-conv"], "`wattload traces fetch azure-2023-conv`"),
        (["run", "http://h", "--trace", "cnov"], "did you mean conv?"),
        (["run", "http://h", "--slo", "ttft=p99:500ms"], "percentiles are for --assert"),
    ],
)
def test_a_slip_is_answered_with_what_to_write(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = call(arguments, capsys)
    assert (code, len(err.strip().splitlines())) == (2, 1)
    assert said in err


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize("command", [[], ["run"], ["sweep"], ["doctor"], ["traces"]])
def test_help_has_its_short_flag_everywhere(
    command: list[str], flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = call([*command, flag], capsys)
    assert code == 0
    assert "Usage" in out


def test_without_a_command_the_commands_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call([], capsys)
    assert code == 0
    assert all(name in out for name in cli.COMMANDS)


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_the_version(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call([flag], capsys)[:2] == (0, f"wattload {__version__}\n")


@pytest.mark.parametrize(
    ("flags", "name", "value"),
    [
        (["-r", "5"], "rate", "5"),
        (["--request-rate", "5"], "rate", "5"),
        (["--qps", "5"], "rate", "5"),
        (["-d", "1m30s"], "duration", 90.0),
        (["-n", "100"], "requests", 100),
        (["--num-prompts", "100"], "requests", 100),
        (["-m", "gpt"], "model", "gpt"),
        (["-o", "x"], "out", "x"),
        (["-H", "A: b"], "header", ["A: b"]),
        (["--workload", "code"], "trace", "code"),
        (["--goodput", "ttft:500ms"], "slo", "ttft:500ms"),
        (["-u", "localhost:9"], "url", "http://localhost:9"),
        (["--base-url", "h/v1/completions"], "url", "http://h/v1"),
    ],
)
def test_short_flags_and_names_of_other_tools(
    flags: list[str], name: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[RunConfig] = []

    def kept(config: RunConfig, **_: Any) -> None:
        seen.append(config)
        raise InputError("far enough")

    monkeypatch.setattr("wattload.cli.run.execute", kept)
    with pytest.raises(SystemExit):
        cli.main(["run", *([] if name == "url" else ["http://h"]), *flags])
    assert (seen[0].endpoint.header if name == "header" else seen[0].saved()[name]) == value


def test_an_address_that_names_the_chat_route_asks_for_it() -> None:
    config = RunConfig.of({"url": "h:8000/v1/chat/completions"})
    assert (config.endpoint.url, config.endpoint.api) == ("http://h:8000/v1", "chat")
    assert RunConfig.of({"url": "h/v1/chat/completions", "api": "completions"}).endpoint.api == "completions"


@pytest.mark.parametrize(
    ("settings", "process", "target"),
    [
        ({}, "trace", None),
        ({"rate": "5"}, "poisson", 5.0),
        ({"rate": "3x"}, "trace", None),
        ({"rate": "5", "arrivals": "trace"}, "trace", 5.0),
        ({"trace": "conv@4"}, "poisson", 4.0),
        ({"arrivals": "closed:8"}, "closed:8", None),
        ({"rate": "5", "arrivals": "gamma:2"}, "gamma:2", 5.0),
        ({"trace": "conv@4#a", "tenant": ["b:trace=code,rate=2"]}, "poisson", 6.0),
    ],
)
def test_arrivals_are_poisson_where_a_rate_is_given(
    settings: dict[str, Any], process: str, target: float | None
) -> None:
    config = RunConfig.of({"url": "http://h", **settings})
    streams = load_streams(config.workload)
    assert process_of(streams, config.schedule) == process
    assert target_rate(streams, config.schedule) == target
    assert len(plan(streams, config.schedule)) > 0


def test_a_workload_without_end_is_played_for_a_minute() -> None:
    schedule = build(load_trace("conv"), ScheduleOptions(rate="4"))
    assert schedule.horizon_seconds == 60
    assert len(build(load_trace("conv"), ScheduleOptions(rate="4", requests=10))) == 10


def test_settings_with_further_names_have_no_name_twice() -> None:
    names = [name for setting in SETTINGS.values() for name in (setting.flag, *setting.flags)]
    assert len(names) == len(set(names))
