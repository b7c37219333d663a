"""The wheel in an empty environment, as `uvx` and `pipx run` have it: the demo runs from it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import wattmeter

pytestmark = pytest.mark.services
ROOT = Path(__file__).resolve().parents[2]


def _done(*command: str | Path, cwd: Path = ROOT, timeout: float = 900) -> subprocess.CompletedProcess[str]:
    """Runs without anything of the checkout on the path."""
    ours = ("PYTHON", "WATTLOAD_", "WATTSERVE_", "VIRTUAL_ENV", "UV_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return subprocess.run(
        [*map(str, command)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def _uv(*arguments: str | Path) -> None:
    uv = Path(sys.executable).with_name("uv")
    if not uv.exists():
        pytest.skip("uv is not installed: pip install --group services")
    done = _done(uv, "--quiet", *arguments)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    _uv("build", "--python", sys.executable, "--out-dir", folder)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment in which nothing is installed, not even pip."""
    folder = tmp_path_factory.mktemp("empty") / "venv"
    _uv("venv", "--python", sys.executable, folder)
    return folder / "bin"


def test_the_version_has_one_place(wheel: Path) -> None:
    assert wheel.name == f"wattload-{wattmeter.__version__}-py3-none-any.whl"


def test_the_wheel_holds_the_packages_and_their_data_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names} == {
        "wattload",
        "wattmeter",
        "wattserve",
        f"wattload-{wattmeter.__version__}.dist-info",
    }
    kept = {str(path.relative_to(ROOT / side)) for side in ("server", "loadgen") for path in _files(side)}
    assert kept <= set(names)


def test_the_metadata_names_every_extra_and_what_it_brings(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        lines = archive.read(name).decode().partition("\n\n")[0].splitlines()
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    extras = {line.removeprefix("Provides-Extra: ") for line in lines if line.startswith("Provides-Extra: ")}
    assert extras == set(stated) == {"all", "load", "mlflow", "otel", "serve", "text", "vllm", "wandb"}
    # Clients of trackers are brought by their own extra, and by nothing else.
    for extra, client in (("otel", "opentelemetry"), ("mlflow", "mlflow"), ("wandb", "wandb")):
        brought = [line for line in lines if line.startswith(f"Requires-Dist: {client}")]
        assert len(brought) == len(stated[extra])
        assert all(line.endswith(f"extra == '{extra}'") for line in brought)


def _files(side: str) -> list[Path]:
    """What is committed of the packages of one side."""
    done = subprocess.run(["git", "ls-files", side], cwd=ROOT, capture_output=True, text=True, check=True)
    paths = [Path(line) for line in done.stdout.splitlines()]
    return [ROOT / path for path in paths if len(path.parts) > 2 and (ROOT / path).exists()]


def test_without_extras_the_help_works_and_a_command_names_the_extra(wheel: Path, empty: Path) -> None:
    _uv("pip", "install", "--python", empty / "python", wheel)
    assert _done(empty / "wattload", "--version").stdout == f"wattload {wattmeter.__version__}\n"
    assert "Usage: wattload" in _done(empty / "wattload", "--help").stdout
    assert _done(empty / "wattserve", "--version").stdout == f"wattserve {wattmeter.__version__}\n"
    assert "Usage: wattserve" in _done(empty / "wattserve", "--help").stdout
    for program, command, extra in (("wattload", "demo", "load"), ("wattserve", "sim", "serve")):
        done = _done(empty / program, command)
        assert done.returncode == 2
        (line,) = done.stderr.strip().splitlines()
        assert f"extra '{extra}'" in line


def test_the_demo_runs_from_the_wheel(wheel: Path, empty: Path, tmp_path: Path) -> None:
    _uv("pip", "install", "--python", empty / "python", f"{wheel}[all]")
    done = _done(
        empty / "wattload", "demo", "--duration", "6s", "--out", "runs", "--progress", "none", cwd=tmp_path
    )
    written = sorted((tmp_path / "runs").iterdir())
    assert [path.name.rsplit("-", 1)[-1] for path in written] == ["code", "conv"], done.stderr
    for path in written:
        run = json.loads((path / "run.json").read_text())
        assert run["requests"]["completed"] > 0
        assert run["energy"]["source"] == "modelled"
        assert (path / "report.html").stat().st_size > 10_000
    # Six seconds are too short for all that a run checks; it must say so and not fall over.
    assert done.returncode in (0, 1), done.stderr
    assert "Traceback" not in done.stderr
