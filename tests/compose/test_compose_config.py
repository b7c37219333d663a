"""Compose's own reading of the file, hadolint's of the Dockerfiles: the real tools, with planted mistakes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.services
ROOT = Path(__file__).resolve().parents[2]


def _tool(name: str) -> str:
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if not found:
        pytest.skip(f"{name} is not installed: pip install --group services")
    return found


def _config(*profiles: str, files: tuple[Path, ...] = (ROOT / "docker-compose.yml",)) -> dict[str, Any]:
    words = [word for file in files for word in ("-f", str(file))]
    words += ["--project-directory", str(ROOT)]
    words += [word for profile in profiles for word in ("--profile", profile)]
    command = [_tool("docker-compose"), *words, "config"]
    done = subprocess.run(
        [*command, "--format", "json"], capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode:
        raise AssertionError(done.stderr)
    loaded: dict[str, Any] = json.loads(done.stdout)
    return loaded


def test_the_pinned_file_pins_every_image_and_changes_nothing_else() -> None:
    profiles = ("gpu", "scale", "run")
    plain = _config(*profiles)["services"]
    pinned = _config(*profiles, files=(ROOT / "docker-compose.yml", ROOT / "docker-compose.pinned.yml"))
    for name, service in pinned["services"].items():
        before = plain[name]
        build = service.get("build")
        if build is None:
            tag, _, digest = service["image"].partition("@sha256:")
            assert (tag, len(digest)) == (before["image"], 64), name
            service["image"] = tag
        else:
            text = (ROOT / build["dockerfile"]).read_text(encoding="utf-8")
            found = set(re.findall(r"^FROM (\S+:\S+)", text, re.MULTILINE))
            given = build.pop("additional_contexts")
            assert set(given) == found, name
            assert all(
                re.fullmatch(rf"docker-image://{tag}@sha256:[0-9a-f]{{64}}", given[tag]) for tag in given
            )
            if "args" in build:
                image = build["args"]["VLLM_IMAGE"].partition("@sha256:")[0]
                assert image == before["build"]["args"]["VLLM_IMAGE"]
                build["args"]["VLLM_IMAGE"] = image
        assert service == before, name


def test_released_images_stand_on_the_pinned_digests() -> None:
    pinned = (ROOT / "docker-compose.pinned.yml").read_text(encoding="utf-8")
    release = (ROOT / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8")
    images = re.findall(r"(python:\S+@sha256:\w+|vllm/vllm-openai:\S+@sha256:\w+)", pinned)
    assert len(images) == 2
    assert sorted(re.findall(r"\S+?[=/]((?:python|vllm/vllm-openai):\S+@sha256:\w+)", release)) == sorted(
        images
    )


def test_up_starts_four_services() -> None:
    assert set(_config()["services"]) == {"sim", "prometheus", "grafana", "locust"}


def test_gpu_profile_asks_for_nvidia_gpus() -> None:
    services = _config("gpu")["services"]
    (device,) = services["vllm"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert device["capabilities"] == ["gpu"]


def test_scale_profile_has_a_master_and_workers() -> None:
    services = _config("scale")["services"]
    assert services["locust-worker"]["deploy"]["replicas"] == 2
    assert "--master" in services["locust-master"]["command"]


def test_every_port_is_on_loopback() -> None:
    for name, service in _config("gpu", "scale", "run")["services"].items():
        for port in service.get("ports", []):
            assert port["host_ip"] == "127.0.0.1", f"{name} publishes {port}"


@pytest.mark.parametrize(
    ("old", "new"),
    [("condition: service_healthy", "condition: healthy"), ("  - prometheus-data:", "  - prometheus_data:"),
     ("    healthcheck: *locust-healthcheck", "    healtcheck: *locust-healthcheck")],
)  # fmt: skip
def test_compose_refuses_a_planted_mistake(tmp_path: Path, old: str, new: str) -> None:
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    assert old in text
    planted = tmp_path / "docker-compose.yml"
    planted.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(AssertionError):
        _config("scale", "run", files=(planted,))


@pytest.mark.parametrize("component", ["server", "loadgen"])
def test_hadolint_has_nothing_to_say(component: str) -> None:
    done = subprocess.run(
        [_tool("hadolint"), str(ROOT / component / "Dockerfile")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_hadolint_finds_a_planted_mistake(tmp_path: Path) -> None:
    text = (ROOT / "loadgen" / "Dockerfile").read_text(encoding="utf-8")
    planted = tmp_path / "Dockerfile"
    planted.write_text(text.replace("python:3.12-slim", "python:latest"), encoding="utf-8")
    done = subprocess.run([_tool("hadolint"), str(planted)], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "DL3007" in done.stdout
