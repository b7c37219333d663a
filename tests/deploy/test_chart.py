"""The Helm chart as Helm itself renders it, read by Kubernetes' and the Prometheus Operator's own schemas."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

pytestmark = pytest.mark.services
ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy" / "helm" / "wattload"
KUBERNETES = ("1.27.0", "1.37.0")
EVERYTHING = {
    "loadTest": {"enabled": True, "target": "http://vllm:8000", "runsClaim": "runs", "apiKeySecret": "key"},
    "engines": {"podLabels": {"app": "vllm"}, "namespaces": ["serving"]},
    "meter": {"hostPort": 8790, "hostPID": True, "idleWatts": 75.5, "runtimeClassName": "nvidia"},
    "monitoring": {"labels": {"release": "kube-prometheus-stack"}},
}
AMD = {"gpu": {"vendor": "amd", "deviceGroups": [44, 992]}}

Manifest = dict[str, Any]


def _helm() -> Any:
    return pytest.importorskip("helm_python", reason="pip install --group services")


def render(values: dict[str, Any], chart: Path = CHART) -> list[Manifest]:
    helm = _helm()
    with helm.Chart.load(str(chart)) as loaded:
        loaded.validate_schema(values)
        files: dict[str, str] = loaded.render(values, name="w", namespace="energy")
    return [
        manifest
        for path, text in files.items()
        if path.endswith(".yaml")
        for manifest in yaml.safe_load_all(text)
        if manifest
    ]


@pytest.fixture(scope="module")
def manifests() -> list[Manifest]:
    return render(EVERYTHING)


def one(manifests: list[Manifest], kind: str, ending: str = "") -> Manifest:
    (found,) = [m for m in manifests if m["kind"] == kind and m["metadata"]["name"].endswith(ending)]
    return found


def unknown_keys(given: Any, understood: Any, path: str = "") -> list[str]:
    """What the operator's models did not take over."""
    if isinstance(given, dict) and isinstance(understood, dict):
        return [
            fault
            for key, value in given.items()
            for fault in (
                unknown_keys(value, understood[key], f"{path}.{key}")
                if key in understood
                else [f"{path}.{key}"]
            )
        ]
    if isinstance(given, list) and isinstance(understood, list):
        return [
            fault
            for number, pair in enumerate(zip(given, understood, strict=True))
            for fault in unknown_keys(*pair, f"{path}[{number}]")
        ]
    return []


def operator_faults(manifest: Manifest) -> list[str]:
    models = pytest.importorskip("cloudcoil.models.prometheus_operator.v1")
    model = getattr(models, manifest["kind"]).model_validate(manifest)
    return unknown_keys(manifest, model.model_dump(mode="json", by_alias=True, exclude_unset=True))


def kubernetes_faults(manifest: Manifest, version: str) -> str | None:
    validator = pytest.importorskip("kubernetes_validate")
    try:
        validator.validate(manifest, version, strict=True)
    except validator.ValidationError as error:
        return str(error.message)
    return None


def test_helm_finds_no_fault_in_the_chart() -> None:
    report = _helm().lint(str(CHART), strict=True)
    assert [m for m in report["messages"] if m["severity"] > 1] == []


@pytest.mark.parametrize("values", [{}, EVERYTHING, AMD, {"meter": {"enabled": False}}])
def test_every_manifest_fits_its_schema(values: dict[str, Any]) -> None:
    rendered = render(values)
    assert rendered
    for manifest in rendered:
        name = f"{manifest['kind']} {manifest['metadata']['name']}"
        if manifest["apiVersion"].startswith("monitoring."):
            assert operator_faults(manifest) == [], name
            continue
        for version in KUBERNETES:
            assert kubernetes_faults(manifest, version) is None, name


def test_a_misspelt_field_is_found(manifests: list[Manifest]) -> None:
    text = json.dumps(one(manifests, "DaemonSet"))
    assert kubernetes_faults(json.loads(text.replace("runAsNonRoot", "runAsNonroot")), KUBERNETES[-1])
    text = json.dumps(one(manifests, "ServiceMonitor"))
    assert operator_faults(json.loads(text.replace("relabelings", "relabellings")))


@pytest.mark.parametrize(
    "values",
    [
        {"meter": {"sauce": "nvml"}},
        {"meter": {"port": 0}},
        {"gpu": {"vendor": "intel"}},
        {"gpu": {"deviceGroups": ["render"]}},
        {"meter": {"socketFolder": "run/wattserve"}},
        {"loadTest": {"rate": 0}},
        {"loadTest": {"duration": "five minutes"}},
        {"dashboard": {}},
    ],
)
def test_values_that_make_no_sense_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(_helm().HelmError):
        render(values)


def test_a_load_test_without_a_target_is_refused_by_name() -> None:
    with pytest.raises(_helm().HelmError, match=r"loadTest\.target"):
        render({"loadTest": {"enabled": True}})


def test_defaults_and_schema_name_the_same_values() -> None:
    defaults = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    del schema["properties"]["global"]

    def compare(value: Any, known: dict[str, Any], path: str) -> None:
        if "properties" in known:
            assert set(value) == set(known["properties"]), path
            assert known["additionalProperties"] is False, path
            for key, part in known["properties"].items():
                compare(value[key], part, f"{path}.{key}")

    compare(defaults, schema, "")


def test_pods_may_do_no_more_than_they_must(manifests: list[Manifest]) -> None:
    for manifest in manifests:
        pod = manifest.get("spec", {}).get("template", {}).get("spec")
        if pod is None:
            continue
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
        for container in pod.get("initContainers", []):
            assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]


def test_the_meter_claims_no_gpu_and_sees_them_all(manifests: list[Manifest]) -> None:
    pod = one(manifests, "DaemonSet")["spec"]["template"]["spec"]
    (meter,) = pod["containers"]
    assert "nvidia.com/gpu" not in json.dumps(meter["resources"])
    assert {"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"} in meter["env"]
    assert pod["hostPID"] is True


def test_an_amd_meter_reads_amds_devices_and_claims_no_gpu() -> None:
    pod = one(render(AMD), "DaemonSet")["spec"]["template"]["spec"]
    (meter,) = pod["containers"]
    mounted = {mount["name"]: mount["mountPath"] for mount in meter["volumeMounts"]}
    folders = {v["name"]: v["hostPath"]["path"] for v in pod["volumes"] if "hostPath" in v}
    for device in ("/dev/kfd", "/dev/dri"):
        (name,) = [name for name, path in mounted.items() if path == device]
        assert folders[name] == device
    assert meter["args"][meter["args"].index("--meter") + 1] == "amdsmi"
    assert pod["securityContext"]["supplementalGroups"] == [44, 992]
    # Without a claim only a privileged container can open the devices, and it cannot forbid escalation too.
    assert meter["securityContext"]["privileged"] is True
    assert "allowPrivilegeEscalation" not in meter["securityContext"]
    assert "amd.com/gpu" not in json.dumps(meter["resources"])
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["nodeSelector"] == {"feature.node.kubernetes.io/amd-gpu": "true"}
    assert [taint["key"] for taint in pod["tolerations"]] == ["amd.com/gpu"]
    assert "nvidia" not in json.dumps(pod).lower()


def test_only_an_amd_meter_is_privileged_or_sees_devices(manifests: list[Manifest]) -> None:
    for manifest in manifests:
        assert '"privileged"' not in json.dumps(manifest)
        assert '"/dev/' not in json.dumps(manifest)


@pytest.mark.parametrize("vendor", ["nvidia", "amd"])
def test_what_is_given_takes_the_place_of_the_vendors_defaults(vendor: str) -> None:
    meter = {"source": "modelled:h200-llama-3.1-8b", "nodeSelector": {}, "tolerations": []}
    pod = one(render({"gpu": {"vendor": vendor}, "meter": meter}), "DaemonSet")["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {}
    assert pod["tolerations"] == []
    assert "modelled:h200-llama-3.1-8b" in pod["containers"][0]["args"]
    assert "supplementalGroups" not in pod["securityContext"]


def test_joules_are_scraped_once(manifests: list[Manifest]) -> None:
    """The job's names are those of the rules, and an engine's own copy of the meter's metrics is dropped."""
    (meter,) = one(manifests, "ServiceMonitor")["spec"]["endpoints"]
    (engines,) = one(manifests, "PodMonitor", "engines")["spec"]["podMetricsEndpoints"]
    (load,) = one(manifests, "PodMonitor", "load-test")["spec"]["podMetricsEndpoints"]
    for endpoint, job in ((meter, "wattserve"), (engines, "wattserve"), (load, "wattload")):
        assert {"targetLabel": "job", "replacement": job} in endpoint["relabelings"]
    assert any(
        rule["action"] == "drop" and re.fullmatch(rule["regex"], "wattserve_energy_joules_total")
        for rule in engines["metricRelabelings"]
        if "action" in rule
    )


def test_monitors_select_what_the_chart_starts(manifests: list[Manifest]) -> None:
    pairs = [
        (one(manifests, "ServiceMonitor"), one(manifests, "Service")["metadata"]),
        (one(manifests, "PodMonitor", "load-test"), one(manifests, "Job")["spec"]["template"]["metadata"]),
    ]
    service = one(manifests, "Service")
    wanted = service["spec"]["selector"].items()
    assert wanted <= one(manifests, "DaemonSet")["spec"]["template"]["metadata"]["labels"].items()
    for monitor, selected in pairs:
        assert monitor["spec"]["selector"]["matchLabels"].items() <= selected["labels"].items()
        assert monitor["metadata"]["labels"]["release"] == "kube-prometheus-stack"


def test_dashboards_are_the_committed_ones_and_have_the_sidecars_label(manifests: list[Manifest]) -> None:
    maps = [m for m in manifests if m["kind"] == "ConfigMap"]
    folder = ROOT / "dashboards" / "grafana" / "dashboards"
    assert {name for m in maps for name in m["data"]} == {path.name for path in folder.glob("*.json")}
    for manifest in maps:
        assert manifest["metadata"]["labels"]["grafana_dashboard"] == "1"
        for name, text in manifest["data"].items():
            assert text == (folder / name).read_text(encoding="utf-8")


def test_the_rules_are_the_committed_ones_and_promtool_takes_them(
    manifests: list[Manifest], tmp_path: Path
) -> None:
    spec = one(manifests, "PrometheusRule")["spec"]
    committed = [
        group
        for path in sorted((ROOT / "dashboards" / "prometheus").glob("[ar]*/*.yml"))
        for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]
    ]
    assert sorted(g["name"] for g in spec["groups"]) == sorted(g["name"] for g in committed)
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(spec), encoding="utf-8")
    done = subprocess.run(
        [promtool, "check", "rules", str(tmp_path / "rules.yml")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_meters_command_makes_a_socket_for_its_group(manifests: list[Manifest], tmp_path: Path) -> None:
    """The rendered command itself, on a modelled device and with a folder of the test's."""
    (container,) = one(manifests, "DaemonSet")["spec"]["template"]["spec"]["containers"]
    changed = {
        "/run/wattserve/meter.sock": str(tmp_path / "meter.sock"),
        "nvml": "modelled:h200-llama-3.1-8b",
        "8790": "0",
        "0.0.0.0": "127.0.0.1",
    }
    words = [changed.get(word, word) for word in [*container["command"], *container["args"]]]
    place = words.index("wattserve")
    words[place : place + 1] = [sys.executable, "-m", "wattserve.cli"]
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(words, stdout=file, stderr=file, env=os.environ)
    try:
        deadline = time.monotonic() + 60
        while not (found := re.search(r"listening on (http://\S+)", log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        mode = stat.S_IMODE((tmp_path / "meter.sock").stat().st_mode)
        assert mode & 0o070 == 0o070, oct(mode)
        assert mode & 0o007 == 0, oct(mode)
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert httpx.get(found[1] + container[probe]["httpGet"]["path"], timeout=30).status_code == 200
    finally:
        process.terminate()
        process.wait(20)


def test_the_load_tests_arguments_are_flags_that_wattload_has(manifests: list[Manifest]) -> None:
    container = one(manifests, "Job")["spec"]["template"]["spec"]["containers"][0]
    kept = (ROOT / "tests" / "public_surface" / "kept" / "wattload.help.txt").read_text(encoding="utf-8")
    section = kept.split("\nwattload run:")[1].split("\nwattload ")[0]
    assert container["command"] == ["wattload", "run"]
    for word in container["args"]:
        if word.startswith("--"):
            assert re.search(rf"option {word}\b", section), word


def test_the_images_and_users_are_those_of_the_dockerfiles() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    version = importlib.import_module("wattmeter").__version__
    assert chart["appVersion"] == version
    for image in (values["meter"]["image"], values["loadTest"]["image"]):
        assert image.endswith(f":{version}")
    user = values["meter"]["runAsUser"]
    assert f"USER {user}:" in (ROOT / "server" / "Dockerfile").read_text(encoding="utf-8")
