"""`wattload doctor URL`: what of an endpoint and its meter works, and the flags that a run of it needs."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from wattload import config as configuration
from wattload.analysis.failures import told
from wattload.cli.options import UrlArgument, UrlOption, settings_of
from wattload.client.endpoint import EndpointOptions
from wattload.config import RunConfig
from wattload.energy.probe import Probe, probe
from wattload.errors import InputError, RunInvalid
from wattload.report.formatting import digits
from wattload.rundir.result import RunJson
from wattload.server_metrics.common import COMMON, chosen, engines_of
from wattload.server_metrics.scraper import targets_of
from wattload.session import execute

_REQUESTS = 4
# Ways to ask for a completion, the best first: prompts of exact length, then what gateways take.
_WAYS: tuple[dict[str, Any], ...] = (
    {"api": "completions", "exact_output": True},
    {"api": "completions", "exact_output": False},
    {"api": "chat", "exact_output": True},
    {"api": "chat", "exact_output": False},
)
_MARKS = {"ok": "✓", "warning": "!", "failed": "✗"}
_COLOURS = {"ok": "green", "warning": "yellow", "failed": "red"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the checklist. `state`: ok, warning or failed."""

    state: str
    check: str
    found: str


def register(app: typer.Typer) -> None:
    app.command("doctor")(doctor)


def doctor(  # noqa: PLR0917 - options of a command
    url: UrlArgument = None,
    target: UrlOption = None,
    energy: Annotated[
        str | None,
        typer.Option(
            help="Source of energy, as for `wattload run`. Default: the target.", metavar="URL|none"
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Name of the model to request.", metavar="NAME")
    ] = None,
    header: Annotated[
        list[str] | None,
        typer.Option("--header", "-H", help="Add a header to every request, as 'Name: value'."),
    ] = None,
    api_key_env: Annotated[
        str | None,
        typer.Option(help="Environment variable that holds the API key.", metavar="NAME"),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Do not verify the server's TLS certificate.")
    ] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print the checklist as JSON.")] = False,
) -> None:
    """Check whether an endpoint and its meter work, and which flags they need.

    It sends a few short requests. Exit status 1: a run of this endpoint would not work.

    Example: wattload doctor http://localhost:8000
    """
    given: dict[str, Any] = {
        "energy": energy,
        "model": model,
        "header": header,
        "api_key_env": api_key_env,
        "insecure": insecure or None,
    }
    config = settings_of("doctor", url, target, given, None)
    findings, flags = [], []
    for finding, needed in examine(config):
        findings.append(finding)
        flags += needed
        if not json_output:
            typer.secho(f"{_MARKS[finding.state]} ", fg=_COLOURS[finding.state], nl=False)
            typer.echo(f"{finding.check}: {finding.found}")
    failed = [finding for finding in findings if finding.state == "failed"]
    asked = [f"--energy {energy}"] if energy is not None and energy != "none" else []
    command = " ".join(
        ["wattload run", config.endpoint.url, *asked, *dict.fromkeys(flags), "--rate 2 --duration 5m"]
    )
    if json_output:
        rows = [{"state": f.state, "check": f.check, "found": f.found} for f in findings]
        typer.echo(
            json.dumps({"usable": not failed, "findings": rows, "run": None if failed else command}, indent=1)
        )
    elif not failed:
        typer.echo(f"\nA first run:\n  {command}")
    if failed:
        raise RunInvalid(
            f"{config.endpoint.url} cannot be measured yet: {failed[0].check}: {failed[0].found}"
        )


def examine(config: RunConfig) -> Iterator[tuple[Finding, list[str]]]:
    """The checks in their order, each with the flags that a run needs for what was found.

    Raises InputError for options that contradict each other.
    """
    try:
        answer = _asked(config.endpoint, "none")
    except InputError as error:
        yield Finding("failed", "endpoint", error.for_command_line()), []
        return
    limit = answer.target.max_model_len
    length = f", at most {limit:,} tokens" if limit is not None else ", its longest prompt is not told"
    others = f" ({len(answer.models)} models are listed)" if len(answer.models) > 1 else ""
    yield Finding("ok", "endpoint", f"serves {answer.target.model}{length}{others}"), []
    metered, needed = yield from _energy(config)
    yield _server_metrics(config), []
    yield from _requests(config, metered, needed)


def _asked(endpoint: EndpointOptions, energy: str | None) -> Probe:
    made = endpoint.endpoint()
    return probe(
        made.url,
        energy_url=energy,
        model=endpoint.first_model,
        headers=dict(made.headers),
        source_headers=endpoint.typed_headers(),
        tls=made.tls,
    )


def _server_metrics(config: RunConfig) -> Finding:
    """Which of the server's own metrics a run will have, by their common names."""
    endpoint = config.endpoint.endpoint()
    found: list[str] = []
    for target in targets_of(
        [one.url for one in endpoint.targets], [], headers=endpoint.headers, tls=endpoint.tls
    ):
        read = target.try_read()
        target.close()
        if read is None:
            return Finding("warning", "server metrics", f"none of {target.shown}: {target.reason}")
        metrics = [series.metric for series in target.exposition.series]
        names = [COMMON[name].title for _, name in chosen({target.url: metrics})]
        own = sum(not series.mapped for series in target.exposition.series)
        engines = ", ".join(engines_of(metrics)) or "no engine that is known"
        known = f"{', '.join(dict.fromkeys(names))}; " if names else ""
        found.append(f"{engines}: {known}{own} series under their own names, at {target.shown}")
    return Finding("ok", "server metrics", "; ".join(found))


def _energy(config: RunConfig) -> Generator[tuple[Finding, list[str]], None, tuple[bool, list[str]]]:
    """Whether there is energy to be had. Gives back whether there is, and the flags without it."""
    if config.energy.energy == "none":
        yield Finding("warning", "energy", "not asked for (--energy none): latency alone is measured"), []
        return False, ["--energy none"]
    try:
        answer = _asked(config.endpoint, config.energy.energy)
    except InputError as error:
        state = "failed" if config.energy.energy is not None else "warning"
        yield Finding(state, "energy", error.for_command_line()), []
        return False, ["--energy none"]
    if answer.energy_url is None:
        yield Finding("warning", "energy", f"{answer.no_energy_reason}"), []
        return False, ["--energy none"]
    devices = ", ".join(str(device.get("name") or device.get("id")) for device in answer.target.devices)
    source = answer.target.energy_source
    simulated = " SIMULATED: no sensor reads these joules." if source == "modelled" else ""
    yield Finding("ok", "energy", f"{source} of {devices}, at {answer.energy_url}.{simulated}"), []
    idle = ((answer.energy or {}).get("idle") or {}).get("watts")
    if isinstance(idle, (int, float)):
        yield Finding("ok", "idle power", f"{digits(float(idle))} W"), []
    else:
        yield (
            Finding("warning", "idle power", "not known yet: the meter measures it while the GPUs are idle"),
            [],
        )
    if answer.clock is not None:
        offset, unsure = answer.clock.offset_seconds * 1e3, answer.clock.uncertainty_seconds * 1e3
        yield (
            Finding("ok", "clocks", f"the meter's is {offset:+.1f} ms from this host's (± {unsure:.1f} ms)"),
            [],
        )
    for note in answer.notes:
        yield Finding("warning", "note", note), []
    return True, []


def _requests(config: RunConfig, metered: bool, needed: list[str]) -> Iterator[tuple[Finding, list[str]]]:
    """Sends a few requests in each way until one works, by the load's own client."""
    last = ""
    for way in _WAYS:
        with tempfile.TemporaryDirectory(prefix="wattload-doctor-") as folder:
            try:
                result = _tried(config, way, metered, Path(folder))
            except (InputError, RunInvalid) as error:
                last = str(error)
                continue
        if result.requests.completed == _REQUESTS:
            yield from _completed(result, way, metered, needed)
            return
        last = told(result.requests.failures[0])
        yield Finding("warning", _name(way), last), []
    yield Finding("failed", "requests", f"no way of asking worked; the last: {last}"), []


def _name(way: dict[str, Any]) -> str:
    return f"{way['api']}{'' if way['exact_output'] else ' --no-exact-output'}"


def _tried(config: RunConfig, way: dict[str, Any], metered: bool, folder: Path) -> RunJson:
    trace = folder / "trace.csv"
    rows = (f"{number * 0.1:.1f},64,16\n" for number in range(_REQUESTS))
    trace.write_text("seconds,prompt_tokens,output_tokens\n" + "".join(rows), encoding="utf-8")
    settings = {
        **config.given,
        **way,
        "energy": config.energy.energy if metered else "none",
        "trace": str(trace),
        "out": folder / "run",
        "warmup": 0,
        "drain": 60,
        "first_token_timeout": 60,
        "progress": "none",
        "server_metrics": False,
        "report": False,
    }
    return execute(configuration.load(settings), quiet=True).result


def _completed(
    result: RunJson, way: dict[str, Any], metered: bool, needed: list[str]
) -> Iterator[tuple[Finding, list[str]]]:
    flags = list(needed)
    if way["api"] == "chat":
        flags.append("--api chat")
    if not way["exact_output"]:
        flags.append("--no-exact-output")
    ttft = result.latency.ttft_seconds
    first = f", TTFT {digits(ttft.p50 * 1e3)} ms" if ttft is not None else ""
    yield Finding("ok", "requests", f"{_REQUESTS} of {_REQUESTS} completed ({_name(way)}){first}"), flags
    tokens = result.tokens
    if tokens.output is None:
        yield Finding("warning", "token counts", "none in `usage`: energy per token will be missing"), []
    elif tokens.mismatches:
        found = f"{tokens.mismatches} of {_REQUESTS} responses had other lengths than planned"
        yield Finding("warning", "token counts", f"{found}; energy per token counts those received"), []
    else:
        yield Finding("ok", "token counts", "as planned"), []
    if not metered:
        return
    each = result.energy.per_request_joules
    if each is not None and each.attributed_requests:
        found = f"attributed to each request, {digits(each.attributed_mean or 0.0)} J of these short ones"
        yield Finding("ok", "energy per request", found), []
    else:
        found = "not attributed to single requests by this source; totals and means are measured"
        yield Finding("warning", "energy per request", found), []
