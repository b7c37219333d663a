"""The `wattserve` command: vllm, sim, meter."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from wattmeter.meter import Meter

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
    int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one and says which.")
]


def refuse(command: str, message: object) -> NoReturn:
    """One sentence on standard error, exit status 2."""
    print(f"wattserve {command}: {message}", file=sys.stderr, flush=True)
    raise typer.Exit(2)


def needs_serve_extra(command: str, error: ModuleNotFoundError) -> NoReturn:
    refuse(command, f"{error.name} is not installed: pip install 'wattload[serve]'")


@app.command()
def sim(
    *,
    profile: Annotated[
        str, typer.Option(help="The GPU and model to simulate: a profile's name or file.")
    ] = "h200-llama-3.1-8b",
    host: Host = "127.0.0.1",
    port: Port = 8000,
    model: Annotated[str | None, typer.Option(help="Name to serve the model under.")] = None,
    max_num_seqs: Annotated[int | None, typer.Option(min=1, help="Most sequences in a step.")] = None,
    max_num_batched_tokens: Annotated[int | None, typer.Option(min=1, help="Most tokens in a step.")] = None,
    kv_cache_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens the KV cache holds.")] = None,
    max_model_len: Annotated[int | None, typer.Option(min=1, help="Longest prompt plus answer.")] = None,
    enable_prefix_caching: Annotated[
        bool, typer.Option("--enable-prefix-caching/--no-enable-prefix-caching", help="Reuse equal prefixes.")
    ] = True,
    late_tolerance_ms: Annotated[
        float, typer.Option(min=0.0, help="A step whose tokens leave later than this is counted as late.")
    ] = 10.0,
    seed: Annotated[int, typer.Option(help="Fixes the text and the lengths of answers.")] = 0,
) -> None:
    """Serve a virtual GPU: continuous batching in real time with a modelled meter. No GPU, no torch."""
    try:
        from wattserve.listen import ListenError, listening_socket, serve
        from wattserve.sim import Simulator
        from wattserve.virtual_gpu.profile import ProfileError, load_profile
    except ModuleNotFoundError as error:
        needs_serve_extra("sim", error)
    try:
        loaded = load_profile(profile)
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
        )
        listener = listening_socket(host, port)
    except (ProfileError, ListenError, ValueError) as error:
        refuse("sim", error)
    announce = f" ({loaded.name}, model {simulator.model.name}, energy modelled)"
    raise typer.Exit(serve(simulator.app, listener, name="wattserve sim", announce=announce))


@app.command()
def meter(
    *,
    upstream: Annotated[
        str | None,
        typer.Option(help="Also be a streaming proxy in front of this server, and count its requests."),
    ] = None,
    host: Host = "127.0.0.1",
    port: Port = 8001,
    kind: Annotated[
        str, typer.Option("--meter", help="Where joules come from: nvml, rapl or recorded:FILE.")
    ] = "nvml",
    devices: Annotated[
        str | None,
        typer.Option(help="GPUs by index or UUID, separated by commas (all, or CUDA_VISIBLE_DEVICES)."),
    ] = None,
    idle_watts: Annotated[
        float | None,
        typer.Option(min=0.0, help="Power of all devices with the model loaded and nothing running."),
    ] = None,
    selftest: Annotated[
        bool, typer.Option("--selftest", help="Test the sensors, print what was found as JSON, and end.")
    ] = False,
    selftest_seconds: Annotated[
        float | None,
        typer.Option(min=1.0, max=60.0, help="Length of the self-test; given alone: test, then serve."),
    ] = None,
) -> None:
    """The meter alone, beside any other server; with --upstream also a streaming proxy in front of it."""
    import json

    try:
        from wattmeter.meters import MeterUnavailableError
        from wattmeter.selftest import run_selftest

        from wattserve.listen import ListenError, listening_socket, serve
        from wattserve.sidecar import Sidecar
    except ModuleNotFoundError as error:
        needs_serve_extra("meter", error)
    if upstream is not None and not upstream.startswith(("http://", "https://")):
        refuse("meter", f"--upstream {upstream}: needs http:// or https:// and a host")
    try:
        opened = open_named_meter(kind, devices)
        if selftest:
            result = run_selftest(opened, selftest_seconds or 20.0)
            print(json.dumps(result.as_json(), indent=2))
            opened.close()
            raise typer.Exit(0)
        sidecar = Sidecar(opened, upstream=upstream, idle_watts=idle_watts, selftest_seconds=selftest_seconds)
        listener = listening_socket(host, port)
    except (MeterUnavailableError, ListenError, ValueError) as error:
        refuse("meter", error)
    names = ", ".join(device.name for device in opened.devices)
    announce = f" ({opened.source}: {names}{f'; upstream {upstream}' if upstream else ''})"
    raise typer.Exit(serve(sidecar.app, listener, name="wattserve meter", announce=announce))


def open_named_meter(kind: str, devices: str | None) -> Meter:
    """The meter of --meter and --devices. Raises MeterUnavailableError."""
    from wattmeter.meters import REGISTRY, MeterUnavailableError, open_meter

    name, _, detail = kind.partition(":")
    if devices is not None and name != "nvml":
        raise MeterUnavailableError(f"--devices is for --meter nvml, not {name}")
    if name == "nvml" and not detail:
        return open_meter("nvml", gpus=[part.strip() for part in devices.split(",")] if devices else None)
    if name == "recorded" and detail:
        return open_meter("recorded", path=detail, loop=True)
    if name in REGISTRY and name != "recorded" and not detail:
        return open_meter(name)
    others = sorted(set(REGISTRY) - {"recorded"})
    raise MeterUnavailableError(
        f"--meter {kind}: not a meter; there are {', '.join(others)} and recorded:FILE"
    )


@app.command()
def profiles(
    save: Annotated[
        Path | None, typer.Option(help="Write the profile named by --name here, to edit a copy.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Show this one in full.")] = None,
) -> None:
    """List the virtual GPUs there are, or show one with the errors of its fit."""
    import json

    from wattserve.virtual_gpu.profile import ProfileError, known_profiles, load_profile

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
    """The console script."""
    app(prog_name="wattserve")


if __name__ == "__main__":
    main()
