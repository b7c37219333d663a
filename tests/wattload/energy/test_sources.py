"""Energy from a DCGM exporter and from Prometheus, in the form of wattserve's own routes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from exporter import ENERGY, NOT_SUPPORTED, POWER, Exporter, exporting, line
from wattload.analysis.window_energy import Measured, window_joules
from wattload.energy.poller import SeriesPoller
from wattload.energy.probe import probe
from wattload.energy.prometheus import check_counter
from wattload.energy.sources import DcgmSource, PrometheusSource, is_foreign, open_source
from wattload.errors import InputError
from wattload.rundir.directory import Capture, RunDir
from wattload.rundir.result import TargetInfo
from wattmeter.faults import Fault
from wattmeter.schema import DeviceSeries

WATTS = 300.0


def two_gpus(now: float, **more: object) -> str:
    """Two GPUs of one host at 300 W, as dcgm-exporter shows them."""
    return "".join(
        line(ENERGY, f"{now * WATTS * 1000:.0f}", gpu=g, UUID=f"GPU-{g}", modelName="NVIDIA H100", **more)
        + line(POWER, WATTS, gpu=g, UUID=f"GPU-{g}", modelName="NVIDIA H100", **more)
        for g in "ab"
    )


def joules(now: float, *labels: dict[str, str]) -> list[tuple[dict[str, str], float]]:
    """An energy counter in joules at 300 W for each set of labels."""
    return [(each, now * WATTS) for each in labels or ({"device": "a", "source": "nvml"},)]


@pytest.fixture
def exporter() -> Iterator[Exporter]:
    with exporting(Exporter(two_gpus, joules)) as served:
        yield served


def unanswered(devices: list[dict[str, object]]) -> Capture:
    """A capture without an answer about the window."""
    return Capture.model_construct(target=TargetInfo(url="http://t", devices=devices), energy_window=None)


def polled(source: DcgmSource | PrometheusSource, folder: Path) -> tuple[Measured, float]:
    """The energy of the inner part of 16 polls, and how long that part is."""
    run = RunDir.create(folder)
    poller = SeriesPoller(source, run, clock=source.clock())
    # Polled here and not by the poller's thread: on a busy machine that thread may take too few readings.
    for _ in range(16):
        poller.begin_early()
        time.sleep(0.05)
    poller.stop()
    assert poller.errors == []
    series = run.read_energy()
    assert series is not None
    times = np.unique(series.column("unix_seconds").to_numpy())
    start, end = float(times[2]), float(times[-3])
    measured = window_joules(unanswered(source.info()["devices"]), start, end, series, None)
    return measured, end - start


def test_dcgm_is_read_in_joules(exporter: Exporter, tmp_path: Path) -> None:
    source = open_source(f"dcgm+{exporter.url}/metrics")
    assert isinstance(source, DcgmSource)
    devices = source.info()["devices"]
    assert [d["id"] for d in devices] == ["GPU-a", "GPU-b"]
    assert {d["source"] for d in devices} == {"dcgm"}
    measured, seconds = polled(source, tmp_path)
    assert measured.joules["total"] == pytest.approx(2 * WATTS * seconds, rel=0.15)
    assert measured.uncertainty_joules is not None
    assert measured.uncertainty_joules < WATTS * 0.3


def test_only_the_selected_device_is_counted(exporter: Exporter, tmp_path: Path) -> None:
    found = probe(exporter.url, energy_url=f"dcgm+{exporter.url}/metrics?gpu=b")
    assert found.counted is not None
    assert [device.id for device in found.counted.devices] == ["GPU-b"]
    assert [d["id"] for d in found.target.devices] == ["GPU-b"]
    assert found.notes == ["energy is counted for 1 device, selected by gpu=b: GPU-b (NVIDIA H100, gpu b)"]
    source = found.open_source()
    assert isinstance(source, DcgmSource)
    measured, seconds = polled(source, tmp_path)
    assert measured.joules["total"] == pytest.approx(WATTS * seconds, rel=0.15)


def test_several_devices_are_refused_until_the_user_selects(exporter: Exporter) -> None:
    address = f"dcgm+{exporter.url}/metrics"
    with pytest.raises(InputError, match="has 2 devices, and the endpoint does not say which") as refused:
        probe(exporter.url + "/elsewhere", energy_url=address, model="m")
    assert "GPU-a (NVIDIA H100, gpu a); GPU-b (NVIDIA H100, gpu b)" in str(refused.value)
    assert "--energy-all-devices" in refused.value.for_command_line()
    every = probe(exporter.url + "/elsewhere", energy_url=address, model="m", all_devices=True)
    assert len(every.target.devices) == 2
    with pytest.raises(InputError, match="gpu=7 selects none of the devices"):
        probe(exporter.url, energy_url=address + "?gpu=7")


def test_the_endpoint_names_its_own_gpu(exporter: Exporter) -> None:
    with exporting(Exporter(lambda _now: line("vllm:info", 1, gpu_uuid="GPU-b"))) as endpoint:
        found = probe(endpoint.url, energy_url=f"dcgm+{exporter.url}/metrics")
        assert found.counted is not None
        assert [device.id for device in found.counted.devices] == ["GPU-b"]
        assert found.counted.known_by == "which the endpoint names as its own"
    # One that the source does not have: the endpoint uses what cannot be counted here.
    with (
        exporting(Exporter(lambda _now: line("vllm:info", 1, gpu_uuid="GPU-z"))) as endpoint,
        pytest.raises(InputError, match="has 2 devices"),
    ):
        probe(endpoint.url, energy_url=f"dcgm+{exporter.url}/metrics")


def test_devices_of_two_hosts_are_two(exporter: Exporter, tmp_path: Path) -> None:
    def hosts(now: float) -> str:
        return "".join(
            line(ENERGY, f"{now * WATTS * 1000:.0f}", gpu=0, device="nvidia0", Hostname=host) for host in "xy"
        )

    exporter.text = hosts
    source = open_source(f"dcgm+{exporter.url}/metrics")
    assert [d["id"] for d in source.info()["devices"]] == ["x/nvidia0", "y/nvidia0"]
    assert isinstance(source, DcgmSource)
    measured, seconds = polled(source, tmp_path)
    assert measured.joules["total"] == pytest.approx(2 * WATTS * seconds, rel=0.15)


def test_lines_of_several_pods_are_one_board(exporter: Exporter) -> None:
    exporter.text = lambda now: (
        two_gpus(now, pod="p1", namespace="n") + two_gpus(now, pod="p2", namespace="n")
    )
    source = open_source(f"dcgm+{exporter.url}/metrics")
    assert [d["id"] for d in source.info()["devices"]] == ["GPU-a", "GPU-b"]
    assert len(source.series(0, 1)) == 2
    with pytest.raises(InputError, match="GPU-a is shared by the pods n/p1, n/p2"):
        probe(exporter.url, energy_url=f"dcgm+{exporter.url}/metrics?pod=p1")


def test_the_devices_of_a_pod(exporter: Exporter) -> None:
    exporter.text = lambda now: "".join(
        line(ENERGY, int(now * 1e5), gpu=g, UUID=f"GPU-{g}", exported_pod=f"vllm-{g}", pod="dcgm")
        for g in "ab"
    )
    found = probe(exporter.url, energy_url=f"dcgm+{exporter.url}/metrics?pod=vllm-b")
    assert [d["id"] for d in found.target.devices] == ["GPU-b"]


def test_a_device_without_a_counter_leaves_no_total(exporter: Exporter, tmp_path: Path) -> None:
    exporter.text = lambda now: (
        two_gpus(now)
        + line(ENERGY, NOT_SUPPORTED, gpu="c", UUID="GPU-c")
        + line(POWER, 300.0, gpu="d", UUID="GPU-d")
    )
    found = probe(exporter.url, energy_url=f"dcgm+{exporter.url}/metrics?gpu=a,c")
    assert "GPU-c has no energy counter (a device does not report its energy)" in found.notes[1]
    source = found.open_source()
    assert isinstance(source, DcgmSource)
    measured, _ = polled(source, tmp_path)
    assert measured.joules.get("total") is None
    assert measured.flags == {Fault.NOT_SUPPORTED, Fault.PARTIAL_COVERAGE}
    assert "the total lacks device GPU-c" in measured.how
    every = probe(exporter.url, energy_url=f"dcgm+{exporter.url}/metrics", all_devices=True)
    assert [d["id"] for d in every.target.devices if "flags" in d] == ["GPU-c", "GPU-d"]


def test_a_cached_sample_is_no_new_reading(exporter: Exporter, tmp_path: Path) -> None:
    exporter.text = lambda _now: two_gpus(1000.0)
    source = open_source(f"dcgm+{exporter.url}/metrics")
    assert isinstance(source, DcgmSource)
    measured, _ = polled(source, tmp_path)
    assert measured.joules.get("total") is None
    assert measured.flags == {Fault.NO_NEW_READING}


def test_mig_instances_are_refused(exporter: Exporter) -> None:
    exporter.text = lambda now: two_gpus(now, GPU_I_ID=3)
    with pytest.raises(InputError, match="MIG instances: each MIG instance shows the energy"):
        probe(exporter.url, energy_url=f"dcgm+{exporter.url}/metrics")
    for selected in ("mig=3", "GPU_I_ID=1", "uuid=MIG-3a"):
        with pytest.raises(InputError, match="selects a MIG instance"):
            open_source(f"dcgm+{exporter.url}/metrics?{selected}")


def test_prometheus_gives_samples_as_scraped(exporter: Exporter) -> None:
    source = open_source(f"prometheus+{exporter.url}?query=wattserve_device_energy_joules_total")
    assert isinstance(source, PrometheusSource)
    assert source.info()["devices"] == [{"id": "a", "name": "a", "source": "nvml"}]
    assert abs(source.clock().offset_seconds) < 0.5
    series = source.series(1000.0, 1010.0)[0]
    assert len(series.unix_seconds) == 10
    assert np.allclose(np.diff(series.joules), WATTS)
    exporter.samples = lambda _now: []
    with pytest.raises(ValueError, match="has no result"):
        source.info()


@pytest.mark.parametrize(
    "query",
    [
        "sum by (instance, device) (joules_total)",
        "max without (pod) (joules_total)",
        "joules_total / 1",
        'sum(joules_total{job="x"}) by (device)',
    ],
)
def test_promql_that_computes_is_asked_over_time(exporter: Exporter, query: str) -> None:
    exporter.scrape_seconds = 5.0
    source = open_source(f"prometheus+{exporter.url}?query={query}")
    assert [d["id"] for d in source.info()["devices"]] == ["a"]
    series = source.series(1000.0, 1022.0)[0]
    assert series.unix_seconds.tolist() == [float(t) for t in range(1000, 1021)]
    assert series.joules[0] == 1000.0 * WATTS
    assert series.joules[-1] == 1020.0 * WATTS


def test_promql_that_prometheus_refuses_is_refused_before_the_load(
    exporter: Exporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str, asked: dict[str, str]) -> tuple[int, dict[str, object]]:
        if path.endswith("query_range"):
            return 400, {"status": "error", "error": "invalid parameter"}
        return Exporter.prometheus(exporter, path, asked)

    monkeypatch.setattr(exporter, "prometheus", refuse)
    with pytest.raises(InputError, match="Prometheus refuses: invalid parameter"):
        probe(exporter.url, energy_url=f"prometheus+{exporter.url}?query=sum(joules_total)", all_devices=True)


@pytest.mark.parametrize(
    ("query", "joules_per_unit"),
    [
        (ENERGY, 1e-3),
        (f"sum by (UUID) ({ENERGY})", 1e-3),
        (f"{ENERGY} / 1000", 1.0),
        ("wattserve_device_energy_joules_total", 1.0),
        ("board_energy_millijoules_total", 1e-3),
        ("rapl_energy_uj", 1e-6),
        ('board_joules_total{unit="_mJ"}', 1.0),
        ("rack_energy_kwh_total", 3.6e6),
        ("rack_energy_kilojoules_total", 1e3),
        ("rack_MJ_total", 1e6),
        ("rack_Wh", 3600.0),
        ("site_energy_megawatt_hours_total", 3.6e9),
        ("node_energy_microjoules_total", 1e-6),
        ("node_energy_total", 1.0),
    ],
)
def test_the_unit_is_that_of_the_metrics_name(exporter: Exporter, query: str, joules_per_unit: float) -> None:
    source = open_source(f"prometheus+{exporter.url}?query={query}")
    assert isinstance(source, PrometheusSource)
    assert source.joules_per_unit == joules_per_unit


@pytest.mark.parametrize(
    "query",
    [
        "DCGM_FI_DEV_POWER_USAGE",
        "node_power_kilowatts",
        "rack_power_megawatts",
        "board_milliwatts",
        "board_power",
        "rack_kw",
        "ipmi_power_mw",
        "sum(node_power_kilowatts) by (node)",
        "instance:gpu_watts:sum",
    ],
)
def test_a_query_for_power_is_refused_by_its_name(exporter: Exporter, query: str) -> None:
    with pytest.raises(ValueError, match="is about power; an energy counter is needed"):
        open_source(f"prometheus+{exporter.url}?query={query}").info()


@pytest.mark.parametrize(
    "query", ["rack_kwh_total", "rack_energy_watt_hours", "gpu_power_energy_joules_total"]
)
def test_energy_in_watt_hours_or_beside_power_is_no_power(exporter: Exporter, query: str) -> None:
    source = open_source(f"prometheus+{exporter.url}?query={query}")
    assert isinstance(source, PrometheusSource)
    exporter.samples = lambda now: joules(now / source.joules_per_unit)
    assert [device["id"] for device in source.info()["devices"]] == ["a"]


def gauge(falls: int, changes: int) -> DeviceSeries:
    """A series with so many falls among its changes, the first of them."""
    steps = np.where(np.arange(changes) < falls, -3.0, 5.0)
    joules = np.concatenate([[1000.0], 1000.0 + np.cumsum(steps)])
    seconds = np.arange(changes + 1, dtype=np.float64)
    return DeviceSeries("rack", "rack", "prometheus", seconds, joules, np.full(changes + 1, np.nan))


@pytest.mark.parametrize(("falls", "changes"), [(3, 20), (10, 20), (3, 3)])
def test_values_that_go_up_and_down_are_a_gauge(falls: int, changes: int) -> None:
    with pytest.raises(ValueError, match=f"fell {falls} times in {changes} changes: a gauge"):
        check_counter(gauge(falls, changes))


@pytest.mark.parametrize(("falls", "changes"), [(0, 20), (2, 6), (3, 60)])
def test_an_exporter_that_was_started_again_is_still_a_counter(falls: int, changes: int) -> None:
    check_counter(gauge(falls, changes))


def test_a_power_that_no_device_draws_is_refused(exporter: Exporter) -> None:
    exporter.samples = lambda now: joules(now * 1000)
    source = open_source(f"prometheus+{exporter.url}?query=board_energy_total")
    with pytest.raises(ValueError, match="means 300,000 W, which no device draws"):
        source.info()
    with pytest.raises(ValueError, match="is about power"):
        open_source(f"prometheus+{exporter.url}?query=DCGM_FI_DEV_POWER_USAGE").info()


def test_a_query_that_selects_devices_is_a_selection(exporter: Exporter) -> None:
    exporter.samples = lambda now: joules(now, {"UUID": "GPU-1"}, {"UUID": "GPU-2"})
    address = f"prometheus+{exporter.url}?query=joules_total"
    with pytest.raises(InputError, match="has 2 devices"):
        probe(exporter.url, energy_url=address)
    with pytest.raises(InputError, match="has 2 devices"):
        probe(exporter.url, energy_url=address + '{job="dcgm"}')
    found = probe(exporter.url, energy_url=address + '{instance="h:9400"}')
    assert found.counted is not None
    assert found.counted.known_by == "selected by the query"
    chosen = probe(exporter.url, energy_url=address + "&uuid=GPU-2")
    assert [d["id"] for d in chosen.target.devices] == ["GPU-2"]


def test_devices_called_alike_are_told_apart_or_refused(exporter: Exporter) -> None:
    source = open_source(f"prometheus+{exporter.url}?query=hosts")
    exporter.samples = lambda now: joules(
        now, *({"device": "nvidia0", "instance": f"h{i}"} for i in range(2))
    )
    assert [device["id"] for device in source.info()["devices"]] == ["h0/nvidia0", "h1/nvidia0"]
    exporter.samples = lambda now: joules(now, *({"device": "nvidia0", "kind": kind} for kind in "ab"))
    with pytest.raises(ValueError, match="several series for nvidia0: sum them"):
        source.info()


def test_headers_are_sent_to_the_source(exporter: Exporter) -> None:
    address = f"dcgm+{exporter.url}/metrics?gpu=a"
    given = {"X-Scope-OrgID": "team"}
    found = probe(exporter.url, energy_url=address, headers={"Authorization": "key"}, source_headers=given)
    source = found.open_source()
    assert source is not None
    source.series(0, 1)
    asked = [h for path, h in zip(exporter.paths, exporter.headers, strict=True) if path == "/metrics"]
    # The first asks the endpoint, which names its GPUs there, with the endpoint's own headers.
    assert "x-scope-orgid" not in asked[0]
    assert all(headers["x-scope-orgid"] == "team" for headers in asked[1:])
    assert all("authorization" not in headers for headers in asked[1:])


def test_a_source_without_a_split_is_read_before_the_load_and_past_its_end(
    exporter: Exporter, tmp_path: Path
) -> None:
    source = open_source(f"dcgm+{exporter.url}/metrics")
    run = RunDir.create(tmp_path)
    poller = SeriesPoller(source, run, clock=source.clock(), interval_seconds=0.5)
    poller.begin_early()
    begin = time.time()
    poller.start()
    poller.stop(begin + 0.6)
    series = run.read_energy()
    assert series is not None
    seconds = series.column("unix_seconds").to_numpy()
    assert seconds.min() < begin
    assert seconds.max() >= begin + 0.6


@pytest.mark.parametrize(
    "address",
    [
        "dcgm+host:9400",
        "dcgm+http://h:x/metrics",
        "dcgm+http://me:pw@h/metrics",
        "dcgm+http://h/metrics?gpu=",
        "prometheus+http://h:9090",
        "prometheus+http://h?query=5",
        "prometheus+http://h?query=m&pods=x",
    ],
)
def test_addresses_that_are_none_are_refused(address: str) -> None:
    assert is_foreign(address)
    with pytest.raises(InputError) as refused:
        open_source(address)
    assert refused.value.for_command_line().startswith("--energy")


def one_gpu(
    now: float, factor: float = 1000.0, watts: float | None = WATTS, tail: str = "", **more: object
) -> str:
    """One GPU whose counter has `factor` units a joule; `tail` stands behind each value."""
    labels = {"gpu": 0, "UUID": "GPU-a", **more}
    text = line(ENERGY, f"{now * WATTS * factor:.3f}{tail}", **labels)
    return text + (line(POWER, f"{watts}{tail}", **labels) if watts is not None else "")


@pytest.mark.parametrize(
    ("factor", "watts", "told"),
    [
        (1.0, WATTS, "its power gauge showed 300 W"),
        (1000.0 / 3600.0, WATTS, "its power gauge showed 300 W"),
        (1.0, None, "less than a device draws while it serves"),
        (20_000.0, None, "which no device draws"),
    ],
)
def test_a_counter_in_another_unit_is_no_energy(
    exporter: Exporter, tmp_path: Path, factor: float, watts: float | None, told: str
) -> None:
    """The exporter counts joules, or milliwatt hours, under the name of millijoules: 1.8 J were valid."""
    exporter.text = lambda now: one_gpu(now, factor, watts)
    source = open_source(f"dcgm+{exporter.url}/metrics")
    assert isinstance(source, DcgmSource)
    measured, _ = polled(source, tmp_path)
    assert measured.joules.get("total") is None
    assert measured.flags == {Fault.IMPLAUSIBLE_POWER}
    assert told in measured.how


def test_two_values_of_one_counter_are_refused(exporter: Exporter, tmp_path: Path) -> None:
    """Each of two pods' lines would be one counter; which of them is it?"""
    exporter.text = lambda now: one_gpu(now, pod="a") + one_gpu(now + 100, pod="b")
    with pytest.raises(InputError, match="counter of GPU-a twice, with different values"):
        probe(exporter.url, energy_url=f"dcgm+{exporter.url}/metrics")


@pytest.mark.parametrize(
    ("late", "told"), [(20.0, "20 s before"), (-3600.0, "3,600 s after"), (1e308, "s before")]
)
def test_values_of_another_time_are_refused(exporter: Exporter, late: float, told: str) -> None:
    """What a federation passes on, or an exporter whose clock is wrong."""
    exporter.text = lambda now: one_gpu(now, tail=f" {(now - late) * 1000:.0f}")
    with pytest.raises(InputError, match=told):
        probe(exporter.url, energy_url=f"dcgm+{exporter.url}/metrics")
    exporter.text = lambda now: one_gpu(now, tail=f" {now * 1000:.0f}")
    assert probe(exporter.url, energy_url=f"dcgm+{exporter.url}/metrics").counted is not None


def test_of_a_long_text_only_the_counters_are_read(exporter: Exporter) -> None:
    """100,000 lines of other metrics took 0.7 s of the load's processor at each scrape."""
    exporter.text = lambda now: one_gpu(now) + "DCGM_FI_DEV_X not a metric at all {{{\n" * 3
    source = open_source(f"dcgm+{exporter.url}/metrics")
    assert isinstance(source, DcgmSource)
    assert [device.id for device in source.series(0.0, 1.0)] == ["GPU-a"]


GARBAGE = [
    [],
    ["a"],
    [{"metric": {"device": "a"}}],
    [{"metric": {"device": "a"}, "values": None}],
    [{"metric": {"device": "a"}, "values": [[]]}],
    [{"metric": {"device": "a"}, "values": [[1, "x"]]}],
    [{"metric": {"device": "a"}, "values": 7}],
    [{"metric": {"device": "a"}, "values": ["ab"]}],
    [{"metric": None, "values": [[{}, {}]]}],
]


@pytest.mark.parametrize("rows", GARBAGE)
def test_what_is_no_answer_of_prometheus_is_a_reason(
    exporter: Exporter, tmp_path: Path, rows: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(f"prometheus+{exporter.url}?query=board_joules_total")
    assert isinstance(source, PrometheusSource)
    monkeypatch.setattr(exporter, "matrix", lambda *_a, **_k: exporter.data("matrix", rows))
    if rows:
        with pytest.raises(InputError, match="cannot read energy from"):
            probe(exporter.url, energy_url=f"prometheus+{exporter.url}?query=board_joules_total")
    run = RunDir.create(tmp_path / "run")
    poller = SeriesPoller(source, run, clock=source.clock(), interval_seconds=0.02)
    poller.start()
    time.sleep(0.2)
    poller.stop()
    measured = window_joules(unanswered([{"id": "a"}]), time.time() - 1, time.time(), run.read_energy(), None)
    assert measured.joules.get("total") is None


def test_readings_of_no_time_hide_no_others(exporter: Exporter, tmp_path: Path) -> None:
    """They come first of all, last and unordered; the window's energy is that of the others."""
    source = open_source(f"prometheus+{exporter.url}?query=board_joules_total")
    assert isinstance(source, PrometheusSource)
    plain = exporter.matrix

    def mixed(times: list[float], *, scraped: bool = False) -> dict[str, object]:
        answer = plain(times, scraped=scraped)
        for series in answer["data"]["result"]:
            no_times = [[odd, "5"] for odd in (1e300, -1e300, float("nan"), 4e9, 1e13)]
            series["values"] = [*no_times, *reversed(series["values"]), *no_times]
        return answer

    exporter.matrix = mixed  # type: ignore[method-assign]
    exporter.scrape_seconds = 0.5
    run = RunDir.create(tmp_path / "run")
    poller = SeriesPoller(source, run, clock=source.clock(), interval_seconds=0.2)
    poller.start()
    time.sleep(3.0)
    poller.stop()
    now = time.time()
    measured = window_joules(unanswered([{"id": "a"}]), now - 2.5, now - 1.5, run.read_energy(), None)
    assert measured.joules.get("total") == pytest.approx(WATTS, rel=0.7)
