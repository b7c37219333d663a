"""docker-compose.yml, the Dockerfiles and .env.example, read; and planted mistakes, which must be found."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import compose_checks as checks
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)


def test_compose_file_reads_well() -> None:
    assert not checks.faults(COMPOSE, ROOT)


@pytest.mark.parametrize("component", ["server", "loadgen"])
def test_images_run_as_an_ordinary_user(component: str) -> None:
    assert not checks.dockerfile_faults((ROOT / component / "Dockerfile").read_text(encoding="utf-8"))


def test_env_example_states_every_setting_with_its_default() -> None:
    assert checks.env_example((ROOT / ".env.example").read_text(encoding="utf-8")) == checks.settings(TEXT)


def test_every_service_with_metrics_can_tell_prometheus_where_they_are() -> None:
    config = yaml.safe_load((ROOT / "dashboards/prometheus/prometheus.yml").read_text(encoding="utf-8"))
    files = [
        f for job in config["scrape_configs"] for sd in job.get("file_sd_configs", []) for f in sd["files"]
    ]
    assert files == ["/targets/wattserve-*.json", "/targets/wattload-*.json"]
    assert "targets:/targets:ro" in COMPOSE["services"]["prometheus"]["volumes"]
    for name, service in COMPOSE["services"].items():
        if "build" in service:
            assert "targets:/targets" in service["volumes"], name


def test_grafana_states_the_scrape_interval_that_prometheus_has() -> None:
    config = yaml.safe_load((ROOT / "dashboards/prometheus/prometheus.yml").read_text(encoding="utf-8"))
    source = ROOT / "dashboards/grafana/provisioning/datasources/prometheus.yml"
    datasource = yaml.safe_load(source.read_text(encoding="utf-8"))["datasources"][0]
    assert datasource["jsonData"]["timeInterval"] == config["global"]["scrape_interval"]


PLANTED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "published to the network": (lambda s: s["grafana"].update(ports=["3000:3000"]), "beyond 127.0.0.1"),
    "a moving tag": (lambda s: s["prometheus"].update(image="prom/prometheus:latest"), "not pinned"),
    "no tag": (lambda s: s["prometheus"].update(image="prom/prometheus"), "not pinned"),
    "a mount that is missing": (
        lambda s: s["grafana"]["volumes"].append("./dashboards/grafana/dashboard:/x:ro"),
        "does not exist",
    ),
    "a writable mount": (lambda s: s["prometheus"]["volumes"].append("./dashboards:/x"), "writable"),
    "no healthcheck": (lambda s: s["sim"].pop("healthcheck"), "no healthcheck"),
    "a healthcheck in a line of shell": (
        lambda s: s["sim"].update(healthcheck={"test": ["CMD-SHELL", "curl localhost"]}),
        "no script file",
    ),
    "all capabilities": (lambda s: s["locust"].pop("cap_drop"), "privileges"),
    "a file system to write on": (lambda s: s["sim"].pop("read_only"), "may write"),
    "no /tmp": (lambda s: s["locust-worker"].pop("tmpfs"), "may write"),
    "an undeclared volume": (lambda s: s["sim"].update(volumes=["cache:/x"]), "volume cache"),
    "a Dockerfile that is missing": (
        lambda s: s["sim"]["build"].update(dockerfile="sim/Dockerfile"),
        "does not exist",
    ),
}


@pytest.mark.parametrize("mistake", PLANTED)
def test_planted_mistake_is_found(mistake: str) -> None:
    plant, expected = PLANTED[mistake]
    planted = copy.deepcopy(COMPOSE)
    plant(planted["services"])
    assert any(expected in fault for fault in checks.faults(planted, ROOT)), checks.faults(planted, ROOT)


def test_planted_root_user_is_found() -> None:
    text = (ROOT / "loadgen" / "Dockerfile").read_text(encoding="utf-8")
    assert checks.dockerfile_faults(text.replace("USER 10001:10001", "USER root"))
    assert checks.dockerfile_faults(text.replace("USER 10001:10001\n", ""))
