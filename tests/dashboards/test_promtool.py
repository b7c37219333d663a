"""promtool's own checks, and the rules against exact history; a rule changed on purpose must fail it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.services
RULES, ALERTS = "rules/energy.yml", "alerts/wattload.yml"
CONFIG = Path(__file__).resolve().parents[2] / "dashboards" / "prometheus"


def _promtool(*words: str, cwd: Path = CONFIG) -> subprocess.CompletedProcess[str]:
    if not shutil.which("promtool"):
        pytest.skip("promtool is not installed (.ci/services installs Debian's prometheus)")
    return subprocess.run(
        ["promtool", *words], cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )


def test_configuration_and_rules() -> None:
    done = _promtool("check", "config", "prometheus.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    # Names as the alerts' tests use them; every alert has one.
    tests = (CONFIG / "tests" / "alerts.yml").read_text(encoding="utf-8")
    alerts = (CONFIG / "alerts" / "wattload.yml").read_text(encoding="utf-8")
    names = [line.split()[-1] for line in alerts.splitlines() if "- alert:" in line]
    assert len(names) >= 8
    assert not [name for name in names if f"alertname: {name}" not in tests]


@pytest.mark.parametrize("name", ["energy.yml", "alerts.yml"])
def test_rules_against_exact_history(name: str) -> None:
    done = _promtool("test", "rules", f"tests/{name}")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        (RULES, "model:energy_watts:rate1m / (model:req", "model:requests_per_second:rate1m / (model:req"),
        (RULES, "(model:requests_per_second:rate1m > 0)", "model:requests_per_second:rate1m"),
        (ALERTS, "wattserve_meter_sample_age_seconds > 5", "wattserve_meter_sample_age_seconds > 500"),
        (ALERTS, "wattserve_meter_faults_total offset 5m", "wattserve_meter_faults_total offset 1m"),
        (ALERTS, "for: 30m", "for: 3m"),
        (ALERTS, "unless on (instance, model)", "and on (instance, model)"),
        (ALERTS, "send_lag_p99_seconds:rate1m > 0.02", "send_lag_p99_seconds:rate1m > 0.2"),
        (ALERTS, "14.4 * 0.01", "14.4 * 0.1"),
    ],
)  # fmt: skip
def test_a_planted_mistake_fails_the_history(tmp_path: Path, file: str, old: str, new: str) -> None:
    shutil.copytree(CONFIG, tmp_path / "prometheus")
    path = tmp_path / "prometheus" / file
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    done = _promtool("test", "rules", "tests/energy.yml", "tests/alerts.yml", cwd=tmp_path / "prometheus")
    assert done.returncode != 0
