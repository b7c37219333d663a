"""The node's components: what tools and BMCs print, in their formats, and one window of it all."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from sim_server import serving
from wattmeter.faults import Fault
from wattmeter.meters import MeterUnavailableError
from wattmeter.meters.base import Reading
from wattmeter.meters.modelled import ModelledMeter
from wattmeter.meters.rapl import RaplMeter
from wattserve.meter.app import MeterApp
from wattserve.meter.components import command, grace, hwmon, ipmi, redfish
from wattserve.meter.components.components import Components
from wattserve.meter.components.gauge import GaugeMeter, GaugesMeter, SensorError, Value
from wattserve.meter.engines import Node
from wattserve.meter_spec import MeterSpec

RECORDED = Path(__file__).parent / "recorded"


@pytest.mark.parametrize("name", ["ipmitool", "freeipmi", "ipmiutil"])
def test_the_present_power_is_read_and_no_average(name: str) -> None:
    assert ipmi.watts_of((RECORDED / f"{name}.txt").read_text()) == Value(watts=412.0)


@pytest.mark.parametrize("text", [(RECORDED / "ipmitool-off.txt").read_text(), "", "Get Power failed: c1"])
def test_a_bmc_without_a_reading_gives_no_zero(text: str) -> None:
    with pytest.raises(SensorError) as error:
        ipmi.watts_of(text)
    assert error.value.fault is Fault.NOT_SUPPORTED


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("redfish-power", Value(watts=1287.0)),
        ("redfish-environment", Value(joules=91827364.5)),
        ("redfish-environment-watts", Value(watts=731.0)),
        ("redfish-sensor", Value(watts=655.5)),
    ],
)
def test_redfish_resources_of_three_kinds(name: str, value: Value) -> None:
    assert redfish.value_of(json.loads((RECORDED / f"{name}.json").read_text())) == value


@pytest.mark.parametrize(
    "resource",
    [
        [], {}, {"PowerControl": []}, {"PowerControl": [{"PowerConsumedWatts": None}]},
        {"PowerControl": [{"PowerConsumedWatts": 1}, {"PowerConsumedWatts": 2}]},
        {"Reading": 20, "ReadingType": "Temperature", "ReadingUnits": "Cel"},
    ],
)  # fmt: skip
def test_a_resource_without_power_is_refused(resource: object) -> None:
    with pytest.raises(SensorError):
        redfish.value_of(resource)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("350 W\n", Value(watts=350.0)), ("0.35kW", Value(watts=350.0)), ("12.5 kJ", Value(joules=12500.0)),
        ("1 kWh", Value(joules=3.6e6)), ("1e6 uJ", Value(joules=1.0)),
    ],
)  # fmt: skip
def test_what_a_command_prints(text: str, value: Value) -> None:
    assert command.value_of(text) == value


@pytest.mark.parametrize("text", ["350", "", "W", "350 V", "350 W 351 W", "-5 W", "nan W"])
def test_a_number_without_its_unit_is_refused(text: str) -> None:
    with pytest.raises(SensorError, match="printed"):
        command.value_of(text)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("command:", "needs a command"),
        ("command:false", "status 1"),
        ("command:/no/such/tool", "not installed"),
        ("command:echo 350", "not one number with its unit"),
        ("command:echo 'x", "quotation"),
        ("redfish:bmc", "needs the address"),
        ("redfish:http://bmc:x/", "needs the address"),
        ("redfish:http://b\0mc/", "needs the address"),
        ("command:a\0b", "null byte"),
        ("ipmi:racadm", "not one of"),
        ("rapl:x", "nothing after it"),
        ("grace:x", "nothing after it"),
        ("nvml-module:x", "nothing after it"),
        ("wall", "not a component"),
    ],
)
def test_a_component_that_cannot_work_is_refused_by_its_flag(spec: str, says: str) -> None:
    with pytest.raises(MeterUnavailableError, match=says) as error:
        Components([spec])
    assert str(error.value).startswith(f"--component {spec}")


def test_a_password_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(MeterUnavailableError, match="password in an address") as error:
        Components(["redfish:https://root:hunter2@bmc/x"])
    assert "hunter2" not in str(error.value)
    assert str(error.value).startswith("--component redfish:https://bmc/x")


def test_a_command_that_takes_too_long_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked each second, a shell whose child is left behind would fill the host with its children."""
    monkeypatch.setattr(command, "TIMEOUT_SECONDS", 0.5)
    pids = tmp_path / "pids"
    script = f"sleep 600 & echo $! >> {pids}; sleep 600 & echo $! >> {pids}; wait"
    with pytest.raises(SensorError, match="took over") as error:
        command.output_of(["sh", "-c", script])
    assert error.value.fault is Fault.TIMEOUT
    children = [int(line) for line in pids.read_text().split()]
    assert len(children) == 2
    deadline = time.monotonic() + 10
    while any(_runs(pid) for pid in children):
        assert time.monotonic() < deadline, "a child is left behind"
        time.sleep(0.02)


def _runs(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("script", ["yes", "yes >&2", "cat /dev/zero"])
def test_a_command_that_prints_without_end_is_ended(script: str) -> None:
    """It took 5 s of memory before."""
    with pytest.raises(SensorError, match="printed more than 65536 bytes"):
        command.output_of(["sh", "-c", script])


def test_what_a_command_says_at_its_end_is_kept() -> None:
    assert command.output_of(["sh", "-c", "printf '350 '; sleep 0.2; echo W"]) == "350 W\n"
    assert command.output_of(["sh", "-c", "exec >&- 2>&-; sleep 0.2"]) == ""
    assert command.output_of(["cat"]) == "", "it has no input to wait for"
    with pytest.raises(SensorError, match="sh ended with status 3: no BMC"):
        command.output_of(["sh", "-c", "echo no BMC >&2; exit 3"])


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * 100_000, "something else than JSON"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b" " * 2_000_000, "more than 1048576 bytes"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "took over"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://elsewhere/\r\n\r\n", "answered 302"),
    ],
    ids=["deep", "long", "dripping", "redirect"],
)
def test_a_bmc_that_answers_oddly_is_a_reason(
    answer: bytes, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()

    def serve(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            sock, _ = listener.accept()
            with sock:
                sock.recv(65536)
                sock.sendall(answer)
                while says == "took over" and not over.wait(0.05):
                    sock.sendall(b" ")

    monkeypatch.setattr(redfish, "TIMEOUT_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        read = redfish.reader(f"http://127.0.0.1:{listener.getsockname()[1]}/redfish/v1")
        with pytest.raises(SensorError, match=says):
            read()
        over.set()


def test_the_nodes_power_is_not_given_twice() -> None:
    with pytest.raises(MeterUnavailableError, match="twice"):
        Components(["command:echo 1 W", "command:echo 2 W"])
    with pytest.raises(MeterUnavailableError, match="node's power is given twice"):
        Components([], meters=[(kind, gauge(kind, lambda: Value(watts=5.0))) for kind in ("acpi", "ipmi")])


def test_acpi_is_the_power_meter_among_the_chips(tmp_path: Path) -> None:
    for number, (name, file) in enumerate([("coretemp", "temp1_input"), ("power_meter", "power1_average")]):
        folder = tmp_path / f"hwmon{number}"
        folder.mkdir()
        (folder / "name").write_text(f"{name}\n")
        (folder / file).write_text("241000000\n")
    read = hwmon.reader(root=tmp_path)
    assert read() == Value(watts=241.0)
    (tmp_path / "hwmon1" / "power1_average").unlink()
    with pytest.raises(SensorError):
        read()
    with pytest.raises(SensorError, match="no ACPI power meter"):
        hwmon.reader(root=tmp_path / "none")


GRACE = {
    "Module Power Socket 0": 612_000_000,
    "Grace Power Socket 0": 141_000_000,
    "CPU Power Socket 0": 88_000_000,
    "SysIO Power Socket 0": 23_000_000,
    "Module Power Socket 1": 598_000_000,
    "Grace Power Socket 1": 139_000_000,
}


def power_meters(root: Path, microwatts: dict[str, int], *, below: str) -> None:
    """A hwmon tree as acpi_power_meter makes it, of meters by label; with a chip that is none of them."""
    (root / "hwmon0").mkdir(parents=True)
    (root / "hwmon0" / "name").write_text("nvme\n")
    for number, (label, value) in enumerate(microwatts.items(), start=1):
        place = root / f"hwmon{number}" / below
        place.mkdir(parents=True)
        (place / "name").write_text("power_meter\n")
        (place / "power1_average").write_text(f"{value}\n")
        (place / "power1_average_interval").write_text("1000\n")
        (place / "power1_oem_info").write_text(f"{label}\n")
        (place / "power1_is_battery").write_text("0\n")


@pytest.mark.parametrize("below", ["", "device"])
def test_grace_is_read_once_for_each_socket_and_its_module(tmp_path: Path, below: str) -> None:
    """The rails of CPU and SysIO are inside Grace's, and Grace's inside the module's."""
    power_meters(tmp_path, GRACE, below=below)
    readers = grace.acpi_readers(root=tmp_path)
    assert {place: read().watts for place, read in readers.items()} == {
        ("module", "Module Power Socket 0"): 612.0,
        ("cpu_package", "Grace Power Socket 0"): 141.0,
        ("module", "Module Power Socket 1"): 598.0,
        ("cpu_package", "Grace Power Socket 1"): 139.0,
    }
    with pytest.raises(SensorError, match="give grace instead"):
        hwmon.reader(root=tmp_path)
    components = Components([], meters=[("grace", GaugesMeter("grace", readers))])
    assert [(entry["component"], entry["name"]) for entry in components.state()] == list(readers)


def test_meters_of_acpi_that_are_not_graces_are_named(tmp_path: Path) -> None:
    power_meters(tmp_path, {"CPU Power Socket 0": 1, "": 2}, below="device")
    with pytest.raises(SensorError, match=r"are: CPU Power Socket 0, one without a label"):
        grace.acpi_readers(root=tmp_path)
    with pytest.raises(SensorError, match=r"there are: none"):
        grace.acpi_readers(root=tmp_path / "nothing")
    power_meters(tmp_path / "twice", {"Grace Power Socket 0": 1}, below="")
    (tmp_path / "twice" / "hwmon1" / "power2_average").write_text("5")
    (tmp_path / "twice" / "hwmon1" / "power2_oem_info").write_text("Grace Power Socket 0")
    with pytest.raises(SensorError, match="two power meters are called Grace Power Socket 0"):
        grace.acpi_readers(root=tmp_path / "twice")


def test_a_meter_of_the_whole_node_is_found_where_older_kernels_have_it(tmp_path: Path) -> None:
    power_meters(tmp_path, {"": 241_000_000}, below="device")
    assert hwmon.reader(root=tmp_path)() == Value(watts=241.0)


class ModuleNvml:
    """As much of pynvml as the module's power needs. The GPU's own scope shows another figure."""

    class NVMLError(Exception):
        pass

    def __init__(self, *names: str | bytes, code: int = 0) -> None:
        self.names, self.code = names, code

    def nvmlInit(self) -> None:
        return None

    def nvmlDeviceGetCount(self) -> int:
        return len(self.names)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetName(self, handle: int) -> str | bytes:
        return self.names[handle]

    def nvmlDeviceGetFieldValues(self, handle: int, fields: list[tuple[int, int]]) -> list[SimpleNamespace]:
        ((field, scope),) = fields
        assert field == 186
        milliwatts = 600_500 if scope == 1 else 450_000
        return [SimpleNamespace(nvmlReturn=self.code, value=SimpleNamespace(uiVal=milliwatts))]


def test_nvml_is_asked_for_the_modules_power_and_not_the_gpus() -> None:
    readers = grace.nvml_readers(nvml=ModuleNvml("NVIDIA GH200 480GB", b"NVIDIA GH200 480GB"))
    assert {place: read().watts for place, read in readers.items()} == {
        ("module", "module of GPU 0"): 600.5,
        ("module", "module of GPU 1"): 600.5,
    }


@pytest.mark.parametrize("name", ["NVIDIA GB200", "NVIDIA H100 80GB HBM3"])
def test_a_module_that_gpus_share_is_not_counted_for_each(name: str) -> None:
    with pytest.raises(SensorError, match="not a GH200: NVML does not tell which GPUs share a module"):
        grace.nvml_readers(nvml=ModuleNvml("NVIDIA GH200 480GB", name))


def test_a_driver_without_the_modules_scope_is_no_zero() -> None:
    (read,) = grace.nvml_readers(nvml=ModuleNvml("NVIDIA GH200 480GB", code=3)).values()
    with pytest.raises(SensorError, match=r"does not know the module's power \(code 3\)") as error:
        read()
    assert error.value.fault is Fault.NOT_SUPPORTED


@pytest.mark.parametrize("pair", [("grace", "nvml-module"), ("nvml-module", "grace")])
def test_one_component_from_two_sensors_is_refused(pair: tuple[str, str], tmp_path: Path) -> None:
    power_meters(tmp_path, GRACE, below="device")
    meters = {
        "grace": GaugesMeter("grace", grace.acpi_readers(root=tmp_path)),
        "nvml-module": GaugesMeter("nvml-module", grace.nvml_readers(nvml=ModuleNvml("NVIDIA GH200 480GB"))),
    }
    with pytest.raises(MeterUnavailableError, match=r"module's power is given twice"):
        Components([], meters=[(kind, meters[kind]) for kind in pair])


def test_gauges_integrate_each_on_its_own() -> None:
    watts = {"a": 100.0, "b": 200.0}
    readers = {("cpu_package", name): functools.partial(Value, watts=value) for name, value in watts.items()}
    meter = GaugesMeter("grace", readers)
    ids = [device.id for device in meter.devices]
    assert [meter.read_energy(one).energy_joules for one in ids] == [0.0, 0.0]
    time.sleep(0.05)
    first, second = (meter.read_energy(one) for one in ids)
    assert first.energy_joules is not None
    assert first.energy_joules > 0.0
    assert (first.power_watts, second.power_watts) == (100.0, 200.0)
    assert set(meter.device_flags.values()) == {frozenset({Fault.INTEGRATED_POWER})}


def gauge(kind: str, read: Callable[[], Value], now: Callable[[], int] = time.monotonic_ns) -> GaugeMeter:
    return GaugeMeter(kind, "node", kind, read, now_ns=now)


def test_watts_are_integrated_and_a_gap_is_not_bridged() -> None:
    shown: list[float | None] = [100.0]
    clock = [0]

    def read() -> Value:
        if shown[0] is None:
            raise SensorError("no answer", Fault.TIMEOUT)
        return Value(watts=shown[0])

    meter = gauge("ipmi", read, lambda: clock[0])

    def at(seconds: float, watts: float | None) -> Reading:
        clock[0], shown[0] = round(seconds * 1e9), watts
        return meter.read_energy("ipmi")

    assert at(0, 100.0).energy_joules == 0.0
    assert at(1, 200.0).energy_joules == pytest.approx(150.0)
    # Whole watts stand still; that is no fault of the sensor.
    assert [at(2 + n, 200.0).fault for n in range(100)] == [None] * 100
    before = at(102, 200.0).energy_joules
    assert at(103, None).fault is Fault.TIMEOUT
    again = at(104, 200.0)
    assert (again.energy_joules, again.fault) == (before, Fault.STALE_SENSOR)
    assert at(105, 0.0).fault is Fault.IMPLAUSIBLE_POWER
    assert meter.device_flags == {"ipmi": frozenset({Fault.INTEGRATED_POWER})}


def test_a_counter_is_passed_on_as_it_is() -> None:
    meter = gauge("command", lambda: Value(joules=5000.0))
    assert meter.read_energy("command").energy_joules == 5000.0
    assert meter.device_flags == {"command": frozenset()}


class Growing(RaplMeter):
    """A recorded powercap tree whose packages draw 50 W and whose DRAM draws 10."""

    def read_energy(self, device_id: str) -> Reading:
        now = time.monotonic_ns()
        watts = 10.0 if next(d.name for d in self.devices if d.id == device_id) == "dram" else 50.0
        return Reading(device_id, now, time.time(), energy_joules=watts * now * 1e-9)


def test_one_window_has_components_beside_the_accelerators_total(tmp_path: Path) -> None:
    for zone, name in (("0", "package-0"), ("0:0", "core"), ("0:1", "dram"), ("1", "package-1")):
        folder = tmp_path / f"intel-rapl:{zone}"
        folder.mkdir()
        (folder / "name").write_text(name)
        (folder / "energy_uj").write_text("1000000")
        (folder / "max_energy_range_uj").write_text("262144000000")
    broken = [False]

    def node_power() -> Value:
        if broken[0]:
            raise SensorError("gone", Fault.TIMEOUT)
        return Value(watts=640.0)

    components = Components(
        [], meters=[("rapl", Growing(root=tmp_path)), ("ipmi", gauge("ipmi", node_power))]
    )
    accelerators = ModelledMeter(lambda ns: 400.0 * ns * 1e-9)
    node = Node(MeterSpec("modelled", "none"), meter=accelerators, idle_watts=100.0)
    with (
        serving(MeterApp(node, components=components).app) as url,
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        listed = {c["component"] for c in client.get("/energy").json()["components"]}
        assert listed == {"cpu_package", "dram", "node"}
        start = time.time() + 2.0
        end = start + 4.0
        deadline = time.monotonic() + 60
        while True:
            found = client.get("/energy", params={"start": start, "end": end}).json()
            if time.time() > end and found["complete"]:
                break
            assert time.monotonic() < deadline, found
            time.sleep(0.2)
        joules = {name: entry["joules"] for name, entry in found["components"].items()}
        assert joules["cpu_package"] == pytest.approx(400.0, rel=0.2)
        assert joules["dram"] == pytest.approx(40.0, rel=0.2)
        assert joules["node"] == pytest.approx(2560.0, rel=0.2)
        assert found["total_joules"] == pytest.approx(1600.0, rel=0.1)
        assert found["components"]["node"]["flags"] == ["integrated_power"]
        broken[0] = True
        time.sleep(8.0)
        end = time.time() - 1.0
        found = client.get("/energy", params={"start": end - 4, "end": end}).json()
        node_entry = found["components"]["node"]
        assert node_entry["joules"] is None, node_entry
        assert node_entry["reason"].startswith("ipmi: node was read for")
        assert found["components"]["dram"]["joules"] is not None
        shown = {
            (sample.name, sample.labels["component"]): sample.value
            for family in text_string_to_metric_families(client.get("/metrics").text)
            for sample in family.samples
            if sample.name.startswith("wattserve_component_")
        }
        counted = "wattserve_component_energy_joules_total"
        assert {part for name, part in shown if name == counted} == {"cpu_package", "dram", "node"}
        assert shown[counted, "node"] > 2000
        assert shown["wattserve_component_sample_age_seconds", "node"] > 5, "its sensor has failed"


@pytest.mark.skipif(os.name != "posix", reason="runs a shell command")
def test_a_users_command_end_to_end() -> None:
    components = Components(["command:echo 350 W"])
    assert components.state() == [{"component": "node", "id": "command", "name": "node", "source": "command"}]
