"""Imports point down: the layers of each package, in one list, hold for every import, lazy ones too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from wattload.cli.app import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"wattmeter": ROOT / "server", "wattserve": ROOT / "server", "wattload": ROOT / "loadgen"}

# Top first. A part may import the parts of lower layers, never those of its own or a higher one.
LAYERS: dict[str, tuple[str, ...]] = {
    "wattmeter": (
        "monitor",
        "attribution",
        "energy_model",
        "steps metering selftest",
        "meters",
        "schema clock",
        "sensor_gain",
        "faults arrays endpoints whole_file standard_streams",
    ),
    "wattserve": (
        "__main__",
        "cli",
        "vllm",
        "meter",
        "meter_spec",
        "sim",
        "http",
        "protocol",
    ),
    "wattload": (
        "__main__",
        "cli",
        "planning",
        "study",
        "locust_ui calibration repeats sweep launch",
        "session",
        "config",
        "load report export",
        "analysis",
        "estimates energy server_metrics",
        "rundir schedule",
        "traces",
        "prompts",
        "client arrivals",
        "options",
        "units errors clock own_server colours",
        "redaction",
    ),
}
# Other distributions, and our own packages, that a package must not import.
FORBIDDEN = {
    "wattmeter": {"wattserve", "wattload", "locust", "gevent", "fastapi", "starlette", "uvicorn", "vllm"},
    "wattserve": {"wattload", "locust", "gevent"},
    "wattload": {"wattserve", "fastapi", "starlette", "uvicorn", "vllm", "pynvml"},
}
# Modules that nothing imports because a program is started by their name.
STARTED_BY_NAME = {
    "wattload.__main__",
    "wattload.cli.__main__",
    "wattload.export.__main__",
    *(f"wattload.cli.{name}" for name in COMMANDS),
    "wattserve.__main__",
    "wattserve.vllm.__main__",
}


def modules() -> dict[str, Path]:
    """Every module of the product by its dotted name; a package goes by its own name."""
    found: dict[str, Path] = {}
    for package, folder in FOLDERS.items():
        for path in (folder / package).rglob("*.py"):
            name = ".".join(path.relative_to(folder).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def imported(source: str) -> Iterator[str]:
    """The dotted names that a module imports, wherever in it; of `from a import b` both `a` and `a.b`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part(module: str) -> str:
    """The part of a package that a module lies in: `metering` of `wattmeter.metering.counter`."""
    return module.split(".")[1] if "." in module else ""


def violations(package: str, sources: dict[str, str], names: set[str]) -> list[str]:
    """Sentences about imports of one package that point up or sideways, or leave it where they must not."""
    rank = {name: i for i, layer in enumerate(LAYERS[package]) for name in layer.split()}
    wrong = []
    for module, source in sources.items():
        if module.split(".")[0] != package:
            continue
        own = part(module)
        if own and own not in rank:
            wrong.append(f"{module}: {own} is in no layer")
            continue
        for target in set(imported(source)):
            if target.split(".")[0] in FORBIDDEN[package]:
                wrong.append(f"{module} imports {target}")
            if target not in names or target.split(".")[0] != package:
                continue
            other = part(target)
            if own and other and other != own and rank.get(other, -1) <= rank[own]:
                wrong.append(f"{module} imports {target}, which is not below it")
    return sorted(set(wrong))


def uses() -> dict[str, set[str]]:
    """The modules of the product that each module of it imports."""
    known = modules()
    return {
        module: {
            target for target in imported(path.read_text("utf-8")) if target in known and target != module
        }
        for module, path in known.items()
    }


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """One cycle of the graph as the list of its nodes, or an empty list."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        for target in sorted(graph.get(node, ())):
            if found := visit(target, [*path, node]):
                return found
        done.add(node)
        return []

    for start in sorted(graph):
        if found := visit(start, []):
            return found
    return []


@pytest.mark.parametrize("package", sorted(LAYERS))
def test_imports_point_down(package: str) -> None:
    known = modules()
    sources = {name: path.read_text("utf-8") for name, path in known.items()}
    assert any(name.startswith(f"{package}.") for name in sources)
    assert not violations(package, sources, set(known))


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {
        # A package's own front door may name what lies below it.
        module: {target for target in targets if not module.startswith(f"{target}.")}
        for module, targets in uses().items()
    }
    assert not cycle(graph)


def test_every_module_is_imported_or_started_by_name() -> None:
    wanted = {target for targets in uses().values() for target in targets}
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    everything = "\n".join(path.read_text("utf-8") for path in modules().values())
    orphans = {
        module
        for module, path in modules().items()
        if path.name != "__init__.py"
        and module not in wanted | STARTED_BY_NAME
        and module not in project
        and f'"{module}"' not in everything
    }
    assert not orphans


def test_the_checks_see_planted_mistakes() -> None:
    lazy = {"wattmeter.meters.nvml": "def f():\n    from wattmeter.monitor.windows import x\n"}
    assert violations("wattmeter", lazy, {"wattmeter.monitor.windows"})
    sibling = {"wattload.energy.client": "import wattload.estimates.online\n"}
    assert violations("wattload", sibling, {"wattload.estimates.online"})
    assert violations("wattload", {"wattload.rundir.run": "from vllm import LLM\n"}, set())
    assert not violations(
        "wattmeter", {"wattmeter.monitor.windows": "import wattmeter.faults\n"}, {"wattmeter.faults"}
    )
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c", "a"]
    assert not cycle({"a": {"b", "c"}, "b": {"c"}})
