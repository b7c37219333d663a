"""What the pages name is there: commands, flags, files, fields of run.json and metrics."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from wattload.cli.app import COMMANDS, load_command
from wattload.rundir.numbers import is_number
from wattserve.cli import app as wattserve
from wattserve.vllm.settings import FLAGS as VLLM_FLAGS
from wattserve.vllm.settings import PREFIX

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), ROOT / "benchmarks" / "README.md"])
# Generated, or a list of what was typed wrongly on purpose, or of the past.
NO_COMMANDS = {"from-other-tools.md", "typed-commands.md", "CHANGELOG.md"}
# Flags of vLLM, of its benchmark, and of a script in benchmarks/.
OTHERS = {
    "--api-server-count",
    "--device-ids",
    "--nnodes",
    "--random-input-len",
    "--random-output-len",
    "--draw",
}

# At the start of a line or of a span of code, after variables or another command.
_COMMAND = re.compile(
    r"(?:^|&& |; |loadgen )[ ]*(?:[A-Z_]+=\S* )*(wattload|wattserve) ([a-z]+)\b"
    r"([^`\n|#;&]*(?:\\\n[^`\n|#;&]*)*)",
    re.MULTILINE,
)
_FLAG = re.compile(r"(?<![\w-])--?[a-zA-Z][a-z0-9-]*")
_CODE = re.compile(r"`([^`\n]+)`")
_FILE = re.compile(r"[\w.-]+(?:/[\w.-]+)+\.(?:py|toml|json|yml|yaml|sh|sbatch|xml|html)")
_METRIC = re.compile(r"\b(?:wattserve|wattload)_[a-z0-9_]+")


@cache
def parameters() -> dict[str, frozenset[str]]:
    """The flags of every command, as `wattload run`."""
    group: Any = typer.main.get_command(wattserve)
    commands = {f"wattload {name}": load_command(name) for name in COMMANDS}
    commands |= {f"wattserve {name}": command for name, command in group.commands.items()}
    found = {}
    for name, command in commands.items():
        inner = getattr(command, "commands", {}).values()
        options = [option for each in (command, *inner) for option in each.params]
        found[name] = frozenset(f for each in options for f in (*each.opts, *each.secondary_opts))
    return found


def unknown_in(text: str) -> Iterator[str]:
    """Commands in code that do not exist, and flags that theirs has not."""
    for program, name, rest in _COMMAND.findall(text):
        command = f"{program} {name}"
        if command not in parameters():
            yield command
        elif command != "wattserve vllm":
            quoted_away = re.sub(r"'[^']*'|\"[^\"]*\"", "", rest)
            known = parameters()[command] | {"--help", "-h"}
            yield from (f"{command} {flag}" for flag in _FLAG.findall(quoted_away) if flag not in known)


def code_of(text: str) -> str:
    """The blocks and the spans of code of a page, one a line."""
    blocks = re.findall(r"```[^\n]*\n(.*?)```|((?:^ {4,}\S.*\n)+)", text, re.DOTALL | re.MULTILINE)
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return "\n".join([*(a or b for a, b in blocks), *_CODE.findall(prose)])


@pytest.mark.parametrize("page", [each for each in PAGES if each.name not in NO_COMMANDS], ids=str)
def test_commands_and_their_flags_are_there(page: Path) -> None:
    assert list(unknown_in(code_of(page.read_text("utf-8")))) == []


def test_flags_that_are_named_alone_are_there() -> None:
    known = frozenset[str]().union(*parameters().values(), (PREFIX + each.name for each in VLLM_FLAGS))
    wrong = {}
    for page in PAGES:
        spans = _CODE.findall(page.read_text("utf-8"))
        named = {flag for span in spans if span.startswith("--") for flag in _FLAG.findall(span)}
        missing = sorted(named - known - OTHERS)
        if missing and page.name not in NO_COMMANDS:
            wrong[page.name] = missing
    assert wrong == {}


@pytest.mark.parametrize("page", [each for each in PAGES if each.name != "CHANGELOG.md"], ids=str)
def test_files_that_are_named_are_there(page: Path) -> None:
    named = {name for span in _CODE.findall(page.read_text("utf-8")) for name in _FILE.findall(span)}
    own = {name for name in named if not name.startswith(("runs/", "traces/Azure", "conv-", "code-", "OUT/"))}
    assert sorted(name for name in own if not is_there(name)) == []


def is_there(name: str) -> bool:
    """Whether a file of the repository ends with this path."""
    if any(part in ("", "..") for part in name.split("/")):
        return True
    places = (ROOT, DOCS, ROOT / "loadgen", ROOT / "server", ROOT / "benchmarks", ROOT / ".github")
    packages = (ROOT / "server" / "wattmeter", ROOT / "server" / "wattserve", ROOT / "loadgen" / "wattload")
    inner = (packages[2] / "traces", packages[1] / "sim")
    return any((place / name).exists() for place in (*places, *packages, *inner))


def test_numbers_of_run_json_that_are_named_are_there() -> None:
    sections = "requests|load|latency|tokens|energy|slo|footprint"
    number = re.compile(rf"(?:{sections})\.[a-z0-9_]+(?:\.[a-z0-9_]+)*")
    schema = json.loads((ROOT / "loadgen/wattload/rundir/run.schema.json").read_text("utf-8"))
    wrong = {}
    for page in PAGES:
        spans = _CODE.findall(page.read_text("utf-8"))
        named = {s for s in spans if number.fullmatch(s) and not s.endswith((".parquet", ".json"))}
        missing = sorted(each for each in named if not (is_number(each) or in_schema(each, schema)))
        if missing and page.name not in NO_COMMANDS:
            wrong[page.name] = missing
    assert wrong == {}


def in_schema(path: str, schema: dict[str, Any]) -> bool:
    """Whether a dotted path leads to a field of run.json; what is below a mapping may have any name."""
    node: dict[str, Any] = schema
    for name in path.split("."):
        kinds = [node, *node.get("anyOf", [])]
        models = [schema["$defs"][k["$ref"].rsplit("/", 1)[1]] for k in kinds if "$ref" in k]
        fields: dict[str, Any] = {}
        for each in (*models, node):
            fields |= each.get("properties", {})
        if name not in fields:
            return any(k.get("type") in ("object", "array") and "properties" not in k for k in kinds)
        node = fields[name]
    return True


def test_every_metric_is_described_once_and_no_other() -> None:
    page = (DOCS / "reference" / "http-and-metrics.md").read_text("utf-8")
    first_cells = [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| `watt")]
    described = [name.removesuffix("_total") for cell in first_cells for name in _METRIC.findall(cell)]
    assert len(described) == len(set(described))
    made = {"wattserve_info"}  # the name of an Info is made by its library
    for path in [*(ROOT / "server").rglob("*.py"), ROOT / "loadgen" / "wattload" / "load" / "metrics.py"]:
        made |= set(re.findall(r'"(watt(?:serve|load)_[a-z_]+)"', path.read_text("utf-8")))
    assert sorted(set(described) ^ made) == []


def test_metrics_that_are_named_are_there() -> None:
    page = (DOCS / "reference" / "http-and-metrics.md").read_text("utf-8")
    described = {name.removesuffix("_total") for name in _METRIC.findall(page)}
    wrong = {}
    for each in PAGES:
        spans = _CODE.findall(each.read_text("utf-8"))
        named = {name for span in spans for name in _METRIC.findall(span)}
        plain = {re.sub(r"(_total|_bucket|_sum|_count)$", "", name) for name in named}
        if missing := sorted(plain - described - {"wattload_ack"}):
            wrong[each.name] = missing
    assert wrong == {}


def test_what_is_wrong_is_found() -> None:
    assert list(unknown_in("wattload run URL --rate 5 --no-such-flag 3")) == ["wattload run --no-such-flag"]
    assert list(unknown_in("wattload runs URL")) == ["wattload runs"]
    assert list(unknown_in("wattload compare a b --fail-if 'x --y'  # --not-read")) == []
    assert not is_there("wattload/nothing/here.py")
    assert is_there("wattload/traces/spec.py")
    assert code_of("a `b` c\n\n    d --e\n\n```\nf --g\n```\n").split("\n")[0] == "    d --e"
