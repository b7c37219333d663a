"""What an OpenTelemetry collector gets of a run: the figures of run.json and the rows of its requests."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from otlp_collector import Collector, attributes, collecting
from synthetic_run import Synthetic
from wattload.analysis.compute import load_run
from wattload.export.failure import ExportFailed
from wattload.export.options import ExportOptions
from wattload.export.otlp import export
from wattload.rundir.run import Run


@pytest.fixture(autouse=True)
def no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


def made(path: Path, **options: Any) -> Run:
    Synthetic(**{"duration": 40.0, "rate": 5.0, "gaps": False, **options}).write(path)
    return load_run(path)


def exported(run: Run, sample: str | float = 1) -> Collector:
    with collecting() as collector:
        options = ExportOptions.of({"otel": collector.url, "otel_sample": sample})
        said = export(run, options, 30)
        assert collector.url in said
    return collector


def value_of(metric: Any) -> float:
    (point,) = metric.gauge.data_points
    return float(getattr(point, point.WhichOneof("value")))


def test_every_number_of_run_json_is_a_metric_with_its_unit(tmp_path: Path) -> None:
    run = made(tmp_path / "r")
    found = exported(run, 0).metrics()
    each = run.energy.per_request_joules
    assert each is not None
    assert each.mean is not None
    assert each.ci95 is not None
    mean = found["wattload.run.energy.per_request_joules.mean"]
    assert value_of(mean) == each.mean
    assert mean.unit == "J"
    assert "idle" in mean.description
    assert value_of(found["wattload.run.energy.per_request_joules.mean.ci95_low"]) == each.ci95[0]
    assert value_of(found["wattload.run.energy.per_request_joules.mean.ci95_high"]) == each.ci95[1]
    assert found["wattload.run.load.achieved_rps"].unit == "{request}/s"
    assert value_of(found["wattload.run.valid"]) == int(run.valid)
    # What was not measured is absent, not 0.
    assert run.slo is None
    assert not [name for name in found if name.startswith("wattload.run.slo")]
    (point,) = mean.gauge.data_points
    assert point.time_unix_nano == round(run.window.end_unix * 1e9)
    assert attributes(point.attributes) == {
        "wattload.run": "synthetic",
        "gen_ai.request.model": "m",
        "wattload.energy.source": "nvml",
        "wattload.energy.simulated": False,
        "wattload.energy.boundary": "gpu",
    }


def test_the_components_add_up_and_the_histograms_hold_the_requests_of_the_window(tmp_path: Path) -> None:
    run = made(tmp_path / "r", failed=0.1)
    found = exported(run, 0).metrics()
    split = found["wattload.energy"].sum
    assert split.is_monotonic
    parts = {attributes(p.attributes)["component"]: p.as_double for p in split.data_points}
    assert set(parts) == {"prefill", "decode", "idle", "unattributed"}
    total = run.energy.total_joules
    assert total is not None
    assert math.isclose(sum(parts.values()), total, rel_tol=1e-9)
    (device,) = found["wattload.device.energy"].sum.data_points
    assert math.isclose(device.as_double, total, rel_tol=1e-9)
    data = run.data
    done = int(data.done.sum())
    assert 0 < done < len(data.requests)
    (joules,) = found["wattload.request.energy"].histogram.data_points
    assert joules.count == done == sum(joules.bucket_counts)
    assert math.isclose(joules.sum, float(data.requests.joules[data.done].sum()), rel_tol=1e-9)
    below = sum(joules.bucket_counts[: list(joules.explicit_bounds).index(30.0) + 1])
    assert below == int((data.requests.joules[data.done] <= 30).sum())
    (duration,) = found["gen_ai.client.operation.duration"].histogram.data_points
    assert duration.count == done
    about = attributes(duration.attributes)
    assert about["gen_ai.operation.name"] == "text_completion"
    assert about["gen_ai.provider.name"] == "synthetic"
    assert (about["server.address"], about["server.port"]) == ("127.0.0.1", 1)
    tokens = found["gen_ai.client.token.usage"].histogram.data_points
    sums = {attributes(point.attributes)["gen_ai.token.type"]: point.sum for point in tokens}
    assert sums == {"input": run.tokens.prompt, "output": run.tokens.output}


def test_each_request_is_a_span_with_its_joules_tokens_and_tenant(tmp_path: Path) -> None:
    run = made(tmp_path / "r", tags=("alice", "bob"), source="modelled", failed=0.1)
    collector = exported(run)
    spans, rows = collector.requests(), run.requests.to_pylist()
    assert sorted(spans) == [row["index"] for row in rows]
    outcomes = set()
    for row in rows:
        span, about = spans[row["index"]]
        outcomes.add(row["outcome"])
        assert about["wattload.request.id"] == row["request_id"]
        assert about["wattload.tenant"] == row["tag"]
        assert span.start_time_unix_nano == round(row["due_unix"] * 1e9)
        assert about["wattload.dispatch_delay_seconds"] == row["sent_unix"] - row["due_unix"]
        if row["outcome"] == "completed":
            assert about["wattload.energy.joules"] == row["energy_joules"]
            assert about["wattload.energy.status"] == "settled"
            assert about["gen_ai.usage.input_tokens"] == row["prompt_tokens"]
            assert about["gen_ai.usage.output_tokens"] == row["output_tokens"]
            assert about["wattload.ttft_seconds"] == row["first_token_unix"] - row["due_unix"]
            assert span.end_time_unix_nano == round(row["last_token_unix"] * 1e9)
            assert not span.status.code
        else:
            assert not any(name.endswith("joules") for name in about)
            assert about["wattload.energy.reason"] == "the meter does not know the request"
            assert about["error.type"] == "http_5xx"
            assert about["http.response.status_code"] == 500
            assert "gen_ai.usage.output_tokens" not in about
            assert span.status.code == 2
    assert outcomes == {"completed", "http_5xx"}


def test_simulated_joules_say_so_on_every_span_and_data_point(tmp_path: Path) -> None:
    from wattmeter.faults import Fault

    run = made(tmp_path / "r")
    run.energy.flags.append(Fault.MODELLED)
    run.energy.source = "modelled"
    collector = exported(run)
    for span in collector.spans():
        about = attributes(span.attributes)
        assert about["wattload.energy.simulated"] is True
        assert about["wattload.energy.flags"] == ["modelled"]
    for metric in collector.metrics().values():
        for point in getattr(metric, metric.WhichOneof("data")).data_points:
            assert attributes(point.attributes)["wattload.energy.simulated"] is True


def test_without_a_meter_nothing_is_said_of_joules(tmp_path: Path) -> None:
    run = made(tmp_path / "r")
    run.energy.source = None
    _, about = exported(run).requests()[0]
    assert "wattload.energy.simulated" not in about


def test_an_export_again_makes_the_same_spans_which_link_to_the_run(tmp_path: Path) -> None:
    run = made(tmp_path / "r")
    first, second = exported(run, "50%"), exported(run, 0.5)
    ids = [(span.trace_id, span.span_id) for span in first.spans()]
    assert ids == [(span.trace_id, span.span_id) for span in second.spans()]
    assert len(set(ids)) == len(ids)
    (root,) = [span for span in first.spans() if span.name == "wattload run"]
    for span, _ in first.requests().values():
        (link,) = span.links
        assert (link.trace_id, link.span_id) == (root.trace_id, root.span_id)
    elsewhere = exported(made(tmp_path / "other", schedule_sha256="s2"), "50%")
    assert not set(ids) & {(span.trace_id, span.span_id) for span in elsewhere.spans()}


def test_the_sample_is_a_share_and_a_larger_one_holds_the_smaller(tmp_path: Path) -> None:
    run = made(tmp_path / "r", requests=2000)
    some, more = set(exported(run, 0.1).requests()), set(exported(run, 0.3).requests())
    assert some < more
    # 3.9 standard deviations of a binomial.
    assert abs(len(some) - 200) < 53
    assert abs(len(more) - 600) < 80
    assert [span.name for span in exported(run, 0).spans()] == ["wattload run"]


def test_no_secret_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made(tmp_path / "r")
    run.result.target.url = "http://user:hunter2-password@10.0.0.1:8000"
    run.result.config |= {
        "header": ["authorization: Bearer abcdef-very-secret"],
        "body": '{"api_key": "abcdef-very-secret"}',
        "url": "http://user:hunter2-password@10.0.0.1:8000",
        "trace": "http://user:hunter2-password@data/x.csv",
    }
    run.result.host["command"] = "wattload run --header 'x: abcdef-very-secret'"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-key=abcdef-very-secret")
    collector = exported(run)
    sent = b"".join(collector.raw)
    assert b"10.0.0.1" in sent
    for secret in (b"abcdef-very-secret", b"hunter2"):
        assert secret not in sent
    assert {headers["x-key"] for headers in collector.headers} == {"abcdef-very-secret"}


def test_the_environment_of_opentelemetry_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made(tmp_path / "r")
    options = ExportOptions(otel="env", otel_sample=1)
    with collecting() as base, collecting() as traces:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", base.url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{traces.url}/own/path")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=lab")
        export(run, options, 30)
        assert set(base.paths) == {"/v1/metrics"}
        assert set(traces.paths) == {"/own/path"}
        (resource,) = base.resources()
        assert (resource["service.name"], resource["deployment.environment.name"]) == ("mine", "lab")
        assert base.headers[0]["content-encoding"] == "gzip"
        assert base.metrics()
        monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
        before = len(traces.paths)
        assert "spans" not in export(run, options, 30)
        assert len(traces.paths) == before
        monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
        assert "nothing exported" in export(run, options, 30)
        assert len(base.paths) == 2


@pytest.mark.parametrize(
    ("behaviour", "why"),
    [
        ({"status": 401, "said": b"who are you?"}, "HTTP 401: who are you"),
        ({"status": 404}, "HTTP 404"),
        ({"rejects": 3, "said": b"too old"}, "6 spans were rejected.*: too old"),
        ({"silent": True}, "did not respond in time"),
    ],
)
def test_a_collector_that_does_not_take_it_is_one_sentence(
    behaviour: dict[str, Any], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 600 requests are two batches of spans.
    run = made(tmp_path / "r", requests=600)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    with collecting(**behaviour) as collector, pytest.raises(ExportFailed, match=why) as caught:
        export(run, ExportOptions(otel=collector.url, otel_sample=1), 30)
    assert "\n" not in str(caught.value)


def test_spans_that_would_take_too_long_are_counted(tmp_path: Path) -> None:
    run = made(tmp_path / "r")
    with collecting() as collector, pytest.raises(ExportFailed, match=r"only 0 requests.*took too long"):
        export(run, ExportOptions(otel=collector.url, otel_sample=1), -1)
    assert collector.metrics()


def test_a_setting_of_the_environment_that_cannot_be_used_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made(tmp_path / "r")
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):  # which would take precedence
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", "/no/such/certificate")
    with pytest.raises(ExportFailed, match="/no/such/certificate"):
        export(run, ExportOptions(otel="https://127.0.0.1:1"), 30)
