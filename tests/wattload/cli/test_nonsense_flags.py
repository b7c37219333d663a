# ruff: noqa: E501 - tables of cases
"""Every setting's nonsense: status 2 and one sentence that names it, and no request is sent."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from wattload import session as execution
from wattload.cli import app as cli
from wattload.config import SETTINGS
from wattload.errors import flag_of


class Model(BaseHTTPRequestHandler):
    """Lists one model; asking it for a completion is what must not happen."""

    completions: ClassVar[int] = 0

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the terminal."""

    def do_GET(self) -> None:
        known = self.path == "/v1/models"
        raw = json.dumps({"data": [{"id": "m", "max_model_len": 4096}]} if known else {}).encode()
        self.send_response(200 if known else 404)
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def do_POST(self) -> None:
        type(self).completions += 1


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Model)
    threading.Thread(target=lambda: server.serve_forever(0.02), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


# A setting of this kind takes anything, or is nothing but on or off.
FREE = {
    "name",
    "repeat",
    "sort",
    "exact_output",
    "insecure",
    "report",
    "currency",
    "energy_all_devices",
    "server_metrics",
    "mlflow",
    "wandb",
}
# These are tried where they can be told: when the run is over, or only beside another setting.
ELSEWHERE = {
    "push_gateway",
    "secret_file",
    "metrics_host",
    "master_bind_host",
    "master",
    "cert_file",
    "key_file",
}

CASES: dict[str, list[str]] = {
    "concurrency": ["", "0", "-1", "1.5", "many", "4"],
    "output_tokens": ["", "0", "-1", "x", "128"],
    "text_rows": ["", "0", "-1", "x"],
    "natural_lengths": ["", "0", "-1", "1.5", "many"],
    "replica": ["", "http://"],
    "server_metrics_url": ["", "http://", "ftp://h", "http://user:secret@h/metrics"],
    "balance": ["", "fair"],
    "energy_calibration": ["/no/such/file"],
    "history": ["", "none", "own", "server"],
    "output_limit": ["", "tokens", "max-tokens"],
    "url": [],
    "trace": ["", "no-such-trace", "/dev", "conv@fast", "conv@0", "conv#", "conv#te\x07st", "conv#ünit"],
    "rate": ["", "0", "-1", "nan", "-inf", "x", "0x", "fast", "1e300"],
    "arrivals": [
        "", "sometimes", "constant:x=1", "gamma", "gamma:cv=0", "gamma:cv=1e-9", "gamma:cv=1e9", "gamma:cv=nan",
        "ramp:from=1", "ramp:from=0,to=0", "ramp:from=1,to=1e300", "steps:rates=", "steps:rates=a/b", "diurnal:amplitude=2",
        "diurnal:period=1e-12", "onoff:on=1", "onoff:on=1e-12,off=1e-12", "onoff:on=0,off=1", "closed",
        "closed:concurrency=0", "closed:concurrency=1.5", "closed:concurrency=4", "offline",
    ],
    "duration": ["", "0", "-5", "nan", "inf", "1y", "1e308s", "5 apples"],
    "requests": ["", "0", "-1", "1.5", "many", "999999999999"],
    "warmup": ["-1", "soon", "nan", "5", "9s"],
    "seed": ["-1", "x", "1.5"],
    "model": ["gpt-9", "", "m=", "m=0,n=1", "m=-1,n=1", "m=many,n=1", "m=3,m=1", "m=3,gpt-9=1"],
    "system_prompt": ["", " ", "0", "9999999", "@", "@/no/such/file"],
    "image": ["", "big", "512", "0x5", "9999x9999", "512x512", "None", "0"],
    "inputs": ["", "0", "-1", "x", "4"],
    "energy": ["elsewhere", "ftp://h", "http://", "http://127.0.0.1:9", "dcgm+http://127.0.0.1:9/metrics"],
    "out": ["/dev/null", "/proc/nowhere"],
    "progress": ["loud"],
    "tenant": ["x", ":trace=conv", "t:trace=", "t:trace=conv,color=red", "t:trace=conv,rate=0", "a\nb:trace=conv"],
    "tag": ["a\r\nevil: b", "größe"],
    "prefix_share": ["-0.1", "1.1", "nan", "half"],
    "sessions": ["sometimes"],
    "max_length": ["guess"],
    "column_map": ["x", "prompt_tokens=", "color=red"],
    "duplicate_times": ["maybe"],
    "empty_requests": ["maybe"],
    "content_salt": ["-1", "x", str(2**63)],
    "tokenizer": ["/no/such/tokenizer.json"],
    "vocab_size": ["0", "15", "x"],
    "api": ["grpc"],
    "body": ["", "[1]", "@", "@/no/such/file", "@/dev/null", "{", '{"prompt": 1}', '{"stream": false}'],
    "header": ["", "novalue", "a b: c", "a: b\r\nevil: c", "Content-Length: 5", "transfer-encoding: chunked"],
    "api_key_env": ["NO_SUCH_VARIABLE_IS_SET"],
    "ca_file": ["/no/such/file"],
    "connect_timeout": ["0", "-1", "soon"],
    "first_token_timeout": ["0", "nan"],
    "between_tokens_timeout": ["0", "x"],
    "total_timeout": ["0", "1e9h"],
    "drain": ["0", "inf"],
    "slo": ["", "fast", "ttft", "ttft=0ms", "ttft=5", "ttft=1s,ttft=2s", "ttft=-1s", "ttft=1e999s"],
    "until": ["", "ci95", "ci95<0%", "ci95<200%", "mean<2%"],
    "max_failures": ["", "-1%", "101%", "1.1", "nan", "few"],
    "assertions": [
        "", "x", "a < 1", "load.achieved_rps < b", "load.achieved_rps < 5%", "load.achieved_rps < 5 apples",
        "__import__('os')", "slo.met_fraction > 0.9", "footprint.cost.per_1000_requests < 1",
    ],
    "pue": ["0.9", "nan", "inf", "x"],
    "price_per_kwh": ["-1", "inf", "free"],
    "carbon_grams_per_kwh": ["-1", "nan", "inf"],
    "processes": ["0", "-1", "1000", "x"],
    "expect_workers": ["0", "2", "x"],
    "master_port": ["0", "65536", "x"],
    "metrics_port": ["-1", "65536", "x"],
    "otel": ["", "ftp://collector", "http://", "::::", "http://c:port"],
    "otel_sample": ["", "-1", "1.5", "110%", "some", "nan"],
}  # fmt: skip


def test_every_setting_has_its_nonsense() -> None:
    assert set(CASES) | FREE | ELSEWHERE == set(SETTINGS)
    assert not (FREE | ELSEWHERE) & set(CASES)


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in CASES.items() for value in values]
)
def test_it_is_refused(
    field: str,
    value: str,
    url: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = {
        "trace": "conv",
        "rate": "2",
        "duration": "4",
        "energy": "none",
        "out": str(tmp_path / "run"),
        "progress": "none",
    }
    if field == "arrivals" and value.startswith(("ramp", "steps")):
        del given["rate"]
    if field == "requests" or value == "offline":
        del given["duration"]
    if field == "tokenizer":
        given["api"] = "chat"
    given[field] = value
    # With `=`, a value may begin with a dash.
    arguments = ["run", url, *(f"{flag_of(name)}={text}" for name, text in given.items())]
    before = Model.completions

    def not_refused(*_: object) -> None:
        raise AssertionError("the load would have begun")

    monkeypatch.setattr(execution, "send", not_refused)
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    said = capsys.readouterr().err
    assert ended.value.code == 2, said
    assert len(said.strip().splitlines()) == 1, said
    assert "Traceback" not in said
    assert Model.completions == before
    assert not (tmp_path / "run" / "requests.parquet").exists()
    # The flag, or the file or directory, or the tag wherever it was given.
    named = {"trace": "/dev is a directory", "out": value}.get(field, flag_of(field))
    assert flag_of(field) in said or named in said or "tag '" in said, said


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--master", "--processes", "2"), "--processes"),
        (("--arrivals", "closed:concurrency=4", "--rate", "2"), "--rate"),
        (("--trace", "conv@3", "--rate", "2"), "--rate"),
        (("--tag", "a", "--trace", "conv#b"), "--tag a"),
        (("--tenant", "a:trace=conv", "--tag", "a"), "tag"),
        (("--prefix-share", "0.5", "--warmup", "4"), "--warmup"),
        (("--cert-file", "/no/such"), "--cert-file"),
        (("--key-file", "/no/such", "--cert-file", "/dev/null"), "--cert-file"),
    ],
)
def test_settings_that_contradict_each_other(
    flags: tuple[str, ...], said: str, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sensible = ["--duration", "4", "--energy", "none", "--out", str(tmp_path / "run"), "--progress", "none"]
    if "--trace" not in flags:
        sensible += ["--trace", "conv"]
    if "--rate" not in flags and "--trace" not in flags:
        sensible += ["--rate", "2"]
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", url, *sensible, *flags])
    heard = capsys.readouterr().err
    assert ended.value.code == 2, heard
    assert said in heard
    assert len(heard.strip().splitlines()) == 1, heard
