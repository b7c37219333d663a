"""Settings: flags over file, one sentence for nonsense, no secrets in what is saved."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from wattload.config import RunConfig, command_of, load
from wattload.errors import BadInput, InputError, flag_of

BASE = {"url": "http://h:1", "trace": "conv"}


def test_times_in_every_unit() -> None:
    for text, seconds in (("90", 90), ("90s", 90), ("500ms", 0.5), ("2m", 120), ("1.5 h", 5400), (7, 7)):
        assert load({**BASE, "duration": text}).schedule.duration_seconds == seconds


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        'trace = "code"\nrate = 3\nwarmup = "10s"\nheader = ["a: b"]\nassert = ["load.achieved_rps < 1"]\n'
    )
    config = load({"url": "http://h:1", "rate": "5", "trace": None, "header": []}, file)
    assert (config.workload.trace, config.schedule.rate) == ("code", "5")
    assert config.analysis.warmup_seconds == 10
    assert config.endpoint.header == ["a: b"]
    assert [check.text for check in config.analysis.assertions] == ["load.achieved_rps < 1"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"duration": "0"}, "--duration 0: must be greater than 0"),
        ({"duration": "nan"}, "--duration nan: not a valid duration"),
        ({"duration": "-3"}, "--duration -3: not a valid duration"),
        ({"duration": "1e9"}, "--duration 1e9: must be less than"),
        ({"warmup": "soon"}, "--warmup soon: not a valid duration"),
        ({"requests": "0"}, "--requests 0: must be greater than or equal to 1"),
        ({"requests": "1.5"}, "--requests 1.5: "),
        ({"seed": "-1"}, "--seed -1: must be greater than or equal to 0"),
        ({"processes": "0"}, "--processes 0: must be"),
        ({"processes": "many"}, "--processes many: must be"),
        ({"progress": "loud"}, "--progress loud: must be"),
        ({"api": "grpc"}, "--api grpc: must be"),
        ({"prefix_share": "2"}, "--prefix-share 2: must be"),
        ({"prefix_share": "nan"}, "--prefix-share nan: must be"),
        ({"header": ["novalue"]}, "--header"),
        ({"header": ["a: b\r\nevil: c"]}, "--header"),
        ({"body": "[1]"}, "--body [1]: is not a JSON object"),
        ({"body": '{"prompt": 1}'}, "prompt is set by the schedule"),
        ({"columns": ["x"]}, "--columns"),
        ({"connect_timeout": "0"}, "--connect-timeout 0: must be"),
        ({"metrics_port": "70000"}, "--metrics-port 70000: must be"),
        ({"pue": "0.5"}, "--pue 0.5: must be"),
        ({"url": None}, "URL is missing"),
    ],
)
def test_nonsense_is_named_in_one_sentence(given: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput) as caught:
        load({**BASE, **given})
    assert said in caught.value.for_command_line()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("rate = [", "is not TOML"),
        ("rate = " + "[" * 5000, "is not TOML"),
        ("rate = " + "9" * 5000, "is not TOML"),
        ("speed = 3", "unknown setting 'speed'"),
        ("duration = true", "duration True: not a valid duration"),
    ],
)
def test_files_that_are_wrong(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(content)
    with pytest.raises(BadInput) as caught:
        load(BASE, file)
    assert said in str(caught.value)
    assert "bad.toml" in str(caught.value)


def test_python_is_told_the_setting_and_the_command_line_its_flag() -> None:
    with pytest.raises(InputError) as caught:
        load({**BASE, "prefix_share": "2"})
    assert caught.value.field == "prefix_share"
    assert str(caught.value).startswith("prefix_share 2: must be")
    assert caught.value.for_command_line().startswith("--prefix-share 2: must be")
    mentions = InputError("arrivals", "closed needs `requests`, see 'server'")
    assert mentions.for_command_line() == "--arrivals closed needs --requests, see 'server'"
    assert str(InputError("a.csv, line 3: no number")) == "a.csv, line 3: no number"


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read"):
        load(BASE, tmp_path / "none.toml")


def test_the_api_key_comes_from_the_environment_and_is_not_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret-1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    config = load(
        {**BASE, "api_key_env": "MY_KEY", "header": ["X-Api-Key: secret-2", "Accept-Language: shown"]}
    )
    assert config.endpoint.all_headers()["Authorization"] == "Bearer secret-1"
    saved = str(config.saved())
    assert "secret-" not in saved
    assert "Accept-Language: shown" in saved
    assert "Authorization" not in load(BASE).endpoint.all_headers()
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    assert load(BASE).endpoint.all_headers()["Authorization"] == "Bearer k"
    own = load({**BASE, "header": ["authorization: Basic x"]})
    assert own.endpoint.all_headers() == {"authorization": "Basic x"}


def test_a_named_key_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(BadInput, match="api_key_env MY_KEY"):
        load({**BASE, "api_key_env": "MY_KEY"}).endpoint.all_headers()


def test_what_is_saved_can_be_run_again() -> None:
    config = load({**BASE, "rate": "3x", "duration": "10s", "assertions": ["load.achieved_rps < 1"]})
    again = RunConfig.of({k: v for k, v in config.saved().items() if k != "footprint"})
    assert again.saved() == config.saved()


def test_contract_flags() -> None:
    fixed = ["trace", "rate", "arrivals", "duration", "requests", "warmup", "seed", "model", "energy", "out"]
    assert [flag_of(name) for name in fixed] == [f"--{name}" for name in fixed]
    assert flag_of("progress") == "--progress"
    assert flag_of("assertions") == "--assert"


def test_the_command_that_makes_a_run_again() -> None:
    given = {
        "url": "h:8000", "trace": "code", "rate": "5", "duration": "1m30s", "exact_output": False,
        "header": ["Authorization: Bearer secret"], "assertions": ["load.achieved_rps > 4"],
        "out": "runs/x", "slo": "ttft=500ms",
    }  # fmt: skip
    command = command_of(RunConfig.of(given))
    words = shlex.split(command)
    assert words[:3] == ["wattload", "run", "http://h:8000"]
    assert "secret" not in command
    assert "--out" not in words
    for flag, value in (("--rate", "5"), ("--duration", "90"), ("--assert", "load.achieved_rps > 4")):
        assert words[words.index(flag) + 1] == value
    assert "--no-exact-output" in words


def test_a_header_that_is_none_is_told_without_its_value() -> None:
    with pytest.raises(InputError) as refused:
        RunConfig.of({**BASE, "header": ["Authorization=Bearer sk-1234"]})
    assert "is not a header" in refused.value.for_command_line()
    assert "sk-1234" not in str(refused.value)
