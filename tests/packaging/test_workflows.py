"""GitHub's workflows: valid by its schema, without known holes, for every supported Python."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def _run(name: str, *arguments: str | Path) -> None:
    tool = Path(sys.executable).with_name(name)
    if not tool.exists():
        pytest.skip(f"{name} is not installed: pip install --group services")
    done = subprocess.run([tool, *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.services
def test_the_workflows_match_their_schema() -> None:
    _run("check-jsonschema", "--builtin-schema", "vendor.github-workflows", *WORKFLOWS)
    _run("check-jsonschema", "--builtin-schema", "vendor.dependabot", ROOT / ".github" / "dependabot.yml")
    forms = ROOT / ".github" / "ISSUE_TEMPLATE"
    questions = [path for path in sorted(forms.glob("*.yml")) if path.stem != "config"]
    _run("check-jsonschema", "--builtin-schema", "vendor.github-issue-forms", *questions)
    _run("check-jsonschema", "--builtin-schema", "vendor.github-issue-config", forms / "config.yml")
    _run("check-jsonschema", "--builtin-schema", "vendor.github-actions", ROOT / "action" / "action.yml")


@pytest.mark.services
def test_the_workflows_have_no_known_hole() -> None:
    _run("zizmor", "--offline", "--no-progress", ROOT / ".github", ROOT / "action")


def steps() -> list[tuple[str, dict[str, Any]]]:
    """Every step of every job, with the names of its workflow and job."""
    return [
        (f"{path.name}: {name}", step)
        for path in WORKFLOWS
        for name, job in yaml.safe_load(path.read_text("utf-8"))["jobs"].items()
        for step in job["steps"]
    ]


def test_what_a_step_runs_is_there_and_is_shell() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z0-9]+):", makefile, re.MULTILINE))
    seen = set()
    for where, step in steps():
        if "run" not in step:
            continue
        read = subprocess.run(
            ["bash", "-n"], input=step["run"], capture_output=True, text=True, timeout=20, check=False
        )
        assert read.returncode == 0, f"{where}: {read.stderr}"
        for command in re.findall(r"^.*\bmake .*$", step["run"], re.MULTILINE):
            made = {word for word in command.partition("make ")[2].split() if re.fullmatch("[a-z0-9]+", word)}
            assert made, f"{where}: {command}"
            assert made <= targets, f"{where}: {command}"
            seen |= made
    assert {"lint", "unit", "e2e", "services", "vllm", "docs", "wheel"} <= seen


def test_the_files_that_a_step_names_are_there() -> None:
    named = [
        (where, step["with"][key])
        for where, step in steps()
        for key in ("file", "context")
        if key in step.get("with", {})
    ]
    assert named
    for where, path in named:
        assert "${{" in path or (ROOT / path).exists(), f"{where}: {path}"


def test_every_supported_python_is_tested() -> None:
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["classifiers"]
    supported = [found[1] for text in classifiers if (found := re.search(r"Python :: (3\.\d+)$", text))]
    loaded = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8"))
    assert loaded["jobs"]["unit"]["strategy"]["matrix"]["python"] == supported


def test_every_job_has_a_limit_and_no_workflow_may_write_by_default() -> None:
    for path in WORKFLOWS:
        loaded = yaml.safe_load(path.read_text("utf-8"))
        assert loaded["permissions"] == {"contents": "read"}, path.name
        for name, job in loaded["jobs"].items():
            assert job["timeout-minutes"] <= 90, f"{path.name}: {name}"
