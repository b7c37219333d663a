"""The `wattserve` command: vllm, sim, meter."""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from wattmeter.standard_streams import give_up, open_standard_streams, say
from wattmeter.whole_file import NO_ROOM
from wattserve import __version__
from wattserve.meter.process import DEFAULT_PORT

app = typer.Typer(
    name="wattserve",
    help="OpenAI-compatible servers that meter the energy of every request.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Host = Annotated[str, typer.Option(help="Address to listen on.")]
Port = Annotated[
    int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one and prints it.")
]


ApiKey = Annotated[
    list[str] | None,
    typer.Option(
        help="A key that clients must send, as Authorization: Bearer KEY. May be repeated; each key then sees"
        " its own requests. Better set WATTSERVE_API_KEY (with commas): others can see a command line."
    ),
]
TenantFromOption = Annotated[
    str | None,
    typer.Option(
        help="What names the tenant of a request: its API key (key; the default with several keys), or its"
        " header x-energy-group (header), which only a trusted proxy should be able to set."
    ),
]


def _tenant_from(text: str | None) -> Literal["header", "key"] | None:
    match text:
        case None | "header" | "key":
            return text
    raise ValueError(f"--tenant-from {text}: header or key")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"wattserve {__version__}")
        raise typer.Exit


@app.callback()
def root(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version", "-V", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Serve OpenAI's API with the energy of every request."""


def refuse(command: str, message: object) -> NoReturn:
    """One sentence on standard error, exit status 2."""
    say(f"wattserve {command}: {message}", error=True)
    raise typer.Exit(2)


def needs_serve_extra(command: str, error: ModuleNotFoundError) -> NoReturn:
    refuse(
        command,
        f"{error.name} is not installed: install wattload with its extra 'serve', in a checkout:"
        " pip install '.[serve]'",
    )


@app.command()
def sim(
    *,
    profile: Annotated[
        str, typer.Option(help="The GPU and model to simulate: a profile's name or file.")
    ] = "h200-llama-3.1-8b",
    host: Host = "127.0.0.1",
    port: Port = 8000,
    model: Annotated[str | None, typer.Option(help="Name to serve the model under.")] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(help="Also serve a LoRA adapter of this name. May be repeated.", metavar="NAME"),
    ] = None,
    max_num_seqs: Annotated[int | None, typer.Option(min=1, help="Most sequences in a step.")] = None,
    max_num_batched_tokens: Annotated[int | None, typer.Option(min=1, help="Most tokens in a step.")] = None,
    kv_cache_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens the KV cache holds.")] = None,
    max_model_len: Annotated[
        int | None, typer.Option(min=1, help="Longest prompt plus response, in tokens.")
    ] = None,
    enable_prefix_caching: Annotated[
        bool, typer.Option("--enable-prefix-caching/--no-enable-prefix-caching", help="Reuse equal prefixes.")
    ] = True,
    power_limit_watts: Annotated[
        float | None, typer.Option(min=1.0, help="Limit the GPU to this power, below the profile's limit.")
    ] = None,
    late_tolerance_ms: Annotated[
        float, typer.Option(min=0.0, help="A step whose tokens leave later than this is counted as late.")
    ] = 10.0,
    seed: Annotated[int, typer.Option(help="Seed of the text and the lengths of responses.")] = 0,
    api_key: ApiKey = None,
    tenant_from: TenantFromOption = None,
) -> None:
    """Serve from a simulated GPU in real time: continuous batching, simulated energy. It needs no GPU."""
    try:
        from wattserve.http.keys import Keys
        from wattserve.http.server import ListenError, listening_socket, serve
        from wattserve.sim.app import Simulator
        from wattserve.sim.profile import ProfileError, load_profile
    except ModuleNotFoundError as error:
        needs_serve_extra("sim", error)
    try:
        loaded = load_profile(profile)
        if power_limit_watts is not None:
            loaded = loaded.limited(power_limit_watts)
        given = {
            "max_num_seqs": max_num_seqs,
            "max_num_batched_tokens": max_num_batched_tokens,
            "kv_cache_tokens": kv_cache_tokens,
            "max_model_len": max_model_len,
        }
        changes = {name: value for name, value in given.items() if value is not None}
        limits = dataclasses.replace(loaded.limits, prefix_caching=enable_prefix_caching, **changes)
        simulator = Simulator(
            loaded,
            limits=limits,
            model_name=model,
            seed=seed,
            late_tolerance_seconds=late_tolerance_ms / 1000,
            keys=Keys.given(api_key or (), tenant_from=_tenant_from(tenant_from)),
            adapters=lora or (),
        )
        listener = listening_socket(host, port)
    except (ProfileError, ListenError, ValueError) as error:
        refuse("sim", error)
    announce = f" ({loaded.name}, model {simulator.model.name}, energy modelled)"
    raise typer.Exit(serve(simulator.app, listener, name="wattserve sim", announce=announce))


meter_app = typer.Typer(context_settings={"help_option_names": ["-h", "--help"]})
app.add_typer(meter_app, name="meter")


@meter_app.callback(invoke_without_command=True)
def meter(
    context: typer.Context,
    *,
    upstream: Annotated[
        str | None,
        typer.Option(
            help="Also serve as a proxy for this server, and estimate each response's energy from its stream."
        ),
    ] = None,
    host: Host = "127.0.0.1",
    port: Port = DEFAULT_PORT,
    socket: Annotated[
        str | None,
        typer.Option(
            help="Take engines' step records at this address: the PATH of a socket, or tcp://HOST:PORT."
        ),
    ] = None,
    kind: Annotated[
        str,
        typer.Option(
            "--meter", help="Where joules come from: nvml, amdsmi, rapl, recorded:FILE, modelled:PROFILE."
        ),
    ] = "nvml",
    devices: Annotated[
        str | None,
        typer.Option(help="GPUs by index or UUID, separated by commas (all, or CUDA_, HIP_VISIBLE_DEVICES)."),
    ] = None,
    idle_watts: Annotated[
        float | None,
        typer.Option(min=0.0, help="Power of all devices with the model loaded and nothing running."),
    ] = None,
    step_model: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="A step model to begin with (with --socket)."),
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(help="Write engines' step records and meter readings into this new folder."),
    ] = None,
    selftest: Annotated[
        bool, typer.Option("--selftest", help="Test the sensors, print what was found as JSON, and end.")
    ] = False,
    component: Annotated[
        list[str] | None,
        typer.Option(
            help="Also meter this part of the node, as a separate figure: rapl (CPU packages, DRAM),"
            " rapl-psys, grace (CPUs, modules), nvml-module, acpi, ipmi, redfish:URL, command:'CMD'"
            " (prints 350 W or 12.5 kJ). May be repeated."
        ),
    ] = None,
    selftest_seconds: Annotated[
        float | None,
        typer.Option(
            min=1.0, max=60.0, help="Length of the self-test. Without --selftest: test first, then serve."
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(help="A file of `wattserve meter calibrate`: tell the gains of these GPUs' sensors."),
    ] = None,
    api_key: ApiKey = None,
    tenant_from: TenantFromOption = None,
) -> None:
    """Meter this node's GPUs, beside any server. Engines can attach to it; --upstream makes it a proxy."""
    if context.invoked_subcommand is not None:
        return
    import json

    try:
        from wattmeter.meters import MeterUnavailableError
        from wattmeter.selftest.sensor_test import run_selftest
        from wattserve.meter.process import MeterOptions, OptionsError, run
        from wattserve.meter.upstream import Address, UpstreamAddressError
        from wattserve.meter_spec import MeterSpec
    except ModuleNotFoundError as error:
        needs_serve_extra("meter", error)
    try:
        if upstream is not None:
            Address.parse(upstream)
        if selftest:
            opened = MeterSpec.parse(kind, devices).open()
            result = run_selftest(opened, selftest_seconds or 20.0)
            print(json.dumps(result.as_json(), indent=2))
            opened.close()
            raise typer.Exit(0)
        options = MeterOptions(
            meter=kind,
            devices=devices,
            socket=socket,
            upstream=upstream,
            host=host,
            port=port,
            idle_watts=idle_watts,
            step_model=None if step_model is None else str(step_model),
            record=None if record is None else str(record),
            selftest_seconds=selftest_seconds,
            api_keys=tuple(api_key or ()),
            tenant_from=_tenant_from(tenant_from),
            components=tuple(component or ()),
            calibration=None if calibration is None else str(calibration),
        )
        status = run(options)
    except UpstreamAddressError as error:
        refuse("meter", f"--upstream {upstream}: {error}")
    except (MeterUnavailableError, OptionsError) as error:
        refuse("meter", error)
    except ModuleNotFoundError as error:
        needs_serve_extra("meter", error)
    raise typer.Exit(status)


@meter_app.command("calibrate")
def calibrate(
    *,
    device: Annotated[
        str | None, typer.Option(help="The device's id, as /energy lists it: a GPU's UUID.")
    ] = None,
    ours: Annotated[
        str | None, typer.Option(help="Its joules of one window by our meter, with the unit: '10.4 kJ'.")
    ] = None,
    theirs: Annotated[
        str | None, typer.Option(help="Its joules of the same window by the outside meter: '10.7 kJ'.")
    ] = None,
    windows: Annotated[
        Path | None,
        typer.Option(help="Instead, a CSV of several windows: device,ours_joules,theirs_joules."),
    ] = None,
    reference_uncertainty: Annotated[
        str,
        typer.Option(help="One standard deviation of the outside meter's own gain, by its data sheet: 0.5%."),
    ],
    reference: Annotated[str, typer.Option(help="What the outside meter is, for the file.")] = "",
    out: Annotated[Path, typer.Option(help="Calibration file; gains of other devices in it stay.")] = Path(
        "calibration.json"
    ),
) -> None:
    """Measure a sensor's gain against an outside meter, for `--calibration` and `wattload run`.

    Example: wattserve meter calibrate --device GPU-5f2c --ours '41.2 kJ' --theirs '42.0 kJ'
    --reference-uncertainty 0.5%
    """
    from wattserve.meter import calibrate as calibration

    try:
        try:
            uncertainty = calibration.fraction_of(reference_uncertainty)
        except ValueError as error:
            raise ValueError(f"--reference-uncertainty: {error}") from None
        compared = calibration.given(device, ours, theirs, windows)
        for line in calibration.calibrate(compared, uncertainty=uncertainty, reference=reference, out=out):
            print(line)
    except OSError as error:
        refuse("meter calibrate", f"--out {out}: {error.strerror}")
    except ValueError as error:
        refuse("meter calibrate", error)


@app.command()
def profiles(
    save: Annotated[
        Path | None, typer.Option(help="Write the profile named by --name here, to edit a copy.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Show this one in full.")] = None,
) -> None:
    """List the GPU models of the simulator, or show one with the errors of its fit."""
    import json

    from wattserve.sim.profile import ProfileError, known_profiles, load_profile

    if name is None:
        if save is not None:
            refuse("profiles", "--save needs --name")
        for known in known_profiles():
            loaded = load_profile(known)
            print(f"{known}  {loaded.device_name}, {loaded.model}, {loaded.power_limit_watts:.0f} W")
        return
    try:
        text = json.dumps(load_profile(name).as_json(), indent=2)
    except ProfileError as error:
        refuse("profiles", error)
    if save is None:
        print(text)
    else:
        try:
            save.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            refuse("profiles", f"--save {save}: {error.strerror}")


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
def vllm(context: typer.Context) -> None:
    """Serve MODEL with vLLM's own server, metered: wattserve vllm MODEL \\[any vllm serve flag]."""
    from wattserve.vllm.launcher import main as launch

    raise typer.Exit(launch(context.args))


def main() -> None:
    """The console script. No traceback reaches the user unless WATTSERVE_DEBUG is 1."""
    open_standard_streams()
    try:
        try:
            app(prog_name="wattserve")
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        give_up(sys.stdout)
        sys.exit(1)
    except OSError as error:
        if error.errno in NO_ROOM:
            give_up(sys.stdout)  # which may be what has no room
            name = f"{error.filename}: " if error.filename else ""
            say(f"wattserve: {name}{error.strerror}", error=True)
        else:
            report(error)
        sys.exit(1)
    except Exception as error:
        report(error)
        sys.exit(1)


def report(error: Exception) -> None:
    """One sentence for an error that nobody foresaw, with the file that belongs into a bug report."""
    shown = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    text = "".join(traceback.format_exception(error))
    if "1" in (os.environ.get("WATTSERVE_DEBUG"), os.environ.get("WATTLOAD_DEBUG")):
        print(text, file=sys.stderr)
        where = "the traceback is above"
    else:
        try:
            with tempfile.NamedTemporaryFile(
                "w", prefix="wattserve-", suffix=".traceback.txt", delete=False, encoding="utf-8"
            ) as file:
                file.write(text)
            where = f"please report it with the file {file.name}"
        except OSError:
            where = "please report it with the traceback that WATTSERVE_DEBUG=1 shows"
    say(f"wattserve: unexpected error: {shown}; {where}", error=True)


if __name__ == "__main__":
    main()
