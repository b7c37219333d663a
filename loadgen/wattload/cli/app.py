"""The `wattload` command: lists the subcommands, imports the one that is asked for, and turns failures into
exit statuses.
"""

from __future__ import annotations

import difflib
import importlib
import os
import re
import signal
import sys
import tempfile
import threading
import traceback
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from wattload import __version__
from wattload.cli.given_once import check_given_once
from wattload.cli.optional_values import with_values
from wattload.cli.other_tools import command_advice, flag_advice
from wattload.cli.repeat_count import with_repeats
from wattload.errors import InputError, RunInvalid
from wattload.redaction import shown
from wattmeter.standard_streams import give_up, open_standard_streams, say
from wattmeter.whole_file import NO_ROOM

_INTERRUPTED = 130
# What Kubernetes writes into <SERVICE>_PORT.
_SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://")
_NO_COMMAND = re.compile(r"No such command '([^']*)'")
# Name and first sentence of every command; the module of `wattload.cli` with a command's name registers it.
COMMANDS = {
    "run": "Replay a workload against an endpoint and write a run directory with its energy and latency.",
    "demo": "Run both embedded workloads against a simulated GPU: about a minute, no GPU needed.",
    "sweep": "Run at several rates: the trade-off curve of energy, latency and rate.",
    "study": "Compare servers over workloads, rates and repeats: energy and latency by arm, with intervals.",
    "plan": "Compute how many servers a load needs within latency limits, and their energy, cost and carbon.",
    "compare": "Compare runs, with confidence intervals; paired where they share a schedule.",
    "report": "Rebuild run.json and report.html from a run directory, and print the summary.",
    "export": "Export finished runs to OpenTelemetry, MLflow or Weights & Biases.",
    "traces": "List, fetch, show and check workloads and traces.",
    "estimate": "Predict the energy of a workload from a calibration.",
    "calibrate": "Measure a calibration: what batches of a workload's request shapes cost on an endpoint.",
    "doctor": "Check whether an endpoint and its meter work, and which flags they need.",
    "init": "Write a commented TOML file of every setting, for --config.",
    "worker": "Send a share of the load of a `wattload run --master` on another host.",
}
# What sends requests must stay small; the others may take Arrow's own allocator.
_SENDERS = frozenset({"run", "demo", "sweep", "calibrate", "doctor", "worker"})
# Those with flags whose value may be left out.
_EXPORTERS = frozenset({"run", "sweep", "export"})
# Earlier names of commands, which are not listed.
_ALIASES = {"profile": "calibrate"}


class LazyGroup(TyperGroup):
    """Knows the commands by name and first sentence, and imports the one that is invoked.

    The help needs no library but Typer then, a load generator does not carry the libraries of the analysis,
    and `report` does not import Locust, which patches sockets.
    """

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and (args[0] in COMMANDS or args[0] in _ALIASES):
            self.commands[args[0]] = load_command(args[0])
            check_given_once(self.commands[args[0]], args[1:])
            if args[0] == "run":
                args = with_repeats(args)
            if args[0] in _EXPORTERS:
                args = with_values(args)
        return super().resolve_command(ctx, args)


def load_command(name: str) -> Any:
    """The command called `name`, its module imported. Raises InputError where a library is not installed."""
    name = _ALIASES.get(name, name)
    if name in _SENDERS:
        from wattload.load import use_system_allocator, without_locust_variables

        use_system_allocator()
        for variable in os.environ.keys() - without_locust_variables(os.environ).keys():
            del os.environ[variable]
    app = typer.Typer(rich_markup_mode="rich")
    app.callback()(lambda: None)
    try:
        module: Any = importlib.import_module(f"wattload.cli.{name}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith(("wattload", "wattmeter")):
            raise
        raise InputError(
            f"{error.name} is not installed: install wattload with its extra 'load', in a checkout:"
            " pip install '.[load]'"
        ) from error
    module.register(app)
    group: Any = typer.main.get_command(app)
    return group.commands[name]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"wattload {__version__}")
        raise typer.Exit


def _main_options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", "-V", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """The options of `wattload` itself."""


def make_app() -> typer.Typer:
    """The application, of which no command is imported yet."""
    app = typer.Typer(
        name="wattload",
        context_settings={"help_option_names": ["-h", "--help"]},
        cls=LazyGroup,
        help="Measures what an LLM endpoint's traffic costs in energy.",
        no_args_is_help=True,
        add_completion=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )
    app.callback()(_main_options)
    for name, sentence in COMMANDS.items():
        app.command(name, help=sentence)(lambda: None)
    return app


def forget_service_variables() -> None:
    """Drops variables that Kubernetes makes for services called `wattload` or `wattload-metrics`.

    An address in WATTLOAD_METRICS_PORT is no port that somebody set.
    """
    for name, value in list(os.environ.items()):
        if name.startswith("WATTLOAD_") and _SERVICE_ADDRESS.match(value):
            del os.environ[name]


class Signals:
    """SIGTERM and SIGHUP do what Ctrl-C does from now on, unless the process was told to ignore them.

    `came`: whether one of the three came. A load in progress has handlers of its own, which end it first.
    """

    def __init__(self) -> None:
        self.came = False
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                    signal.signal(number, self._interrupt)

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        self.came = True
        raise KeyboardInterrupt


def main(arguments: list[str] | None = None) -> None:
    """Ends with a status. 0: done; 1: the run is invalid, an assertion failed, or wattload itself did; 2: bad
    input; 3: the data allow no verdict; 130: interrupted.

    No traceback reaches the user unless WATTLOAD_DEBUG is 1.
    """
    open_standard_streams()
    threading.excepthook = lambda found: _report(found.exc_value)
    try:
        signals = Signals()
        forget_service_variables()
        given = sys.argv[1:] if arguments is None else arguments
        code = make_app()(args=given or ["--help"], standalone_mode=False)
        if signals.came:  # while something ran that swallows exceptions, as a destructor does
            code = _INTERRUPTED
        if code == _INTERRUPTED:  # Typer turns Ctrl-C into a status without a word
            _last_line("wattload: interrupted")
        sys.stdout.flush()
        sys.exit(code if isinstance(code, int) else 0)
    except InputError as error:
        _last_line(f"wattload: {error.for_command_line()}")
        sys.exit(2)
    except RunInvalid as error:
        _last_line(f"wattload: {error}")
        sys.exit(error.status)
    except KeyboardInterrupt:
        _last_line("wattload: interrupted")
        sys.exit(_INTERRUPTED)
    except BrokenPipeError:
        give_up(sys.stdout)
        sys.exit(1)
    except OSError as error:
        if error.errno in NO_ROOM:
            name = f"{error.filename}: " if error.filename else ""
            _last_line(f"wattload: {name}{os.strerror(error.errno)}; what was written before is kept")
        else:
            _report(error)
        sys.exit(1)
    except Exception as error:
        # Errors of usage come from Typer's copy of Click, or from Click, depending on Typer's version.
        usage = getattr(error, "format_message", None)
        if usage is not None:
            _last_line(f"wattload: {_advised(error, usage() or 'see --help')}")
            sys.exit(2)
        if type(error).__name__ == "Abort":
            _last_line("wattload: interrupted")
            sys.exit(_INTERRUPTED)
        _report(error)
        sys.exit(1)


def _advised(error: Any, said: str) -> str:
    """What Typer says of a wrong command line, with what to write for another tool's flag or command."""
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoSuchOption" and context is not None:
        return f"no option {error.option_name}: {_in_place_of(error.option_name, context)}"
    command = _NO_COMMAND.search(said)
    if command is not None:
        near = difflib.get_close_matches(command[1], COMMANDS, 1)
        meant = f"did you mean {near[0]}?" if near else "`wattload --help` lists the commands"
        return f"no command {command[1]!r}: {command_advice(command[1]) or meant}"
    return said


def _in_place_of(option: str, context: Any) -> str:
    """What to write for an option that the command of `context` does not have."""
    advice = flag_advice(option)
    if advice is not None:
        return advice
    if hasattr(context.command, "commands"):
        return f"options follow their command, as in `wattload run URL {option} ...`"
    known = [name for parameter in context.command.params for name in parameter.opts]
    near = difflib.get_close_matches(option, known, 1, 0.75)
    return f"did you mean {near[0]}?" if near else f"`wattload {context.info_name} --help` lists the options"


def _report(error: BaseException | None) -> None:
    """One sentence for an error that nobody foresaw, with the file that belongs into a bug report."""
    if error is None:
        return
    said = shown(" ".join(f"{type(error).__name__}: {error}".split()))[:300]
    text = shown("".join(traceback.format_exception(error)))
    if os.environ.get("WATTLOAD_DEBUG") == "1":
        print(text, file=sys.stderr)
        _last_line(f"wattload: unexpected error: {said}")
        return
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="wattload-", suffix=".traceback.txt", delete=False, encoding="utf-8"
        ) as file:
            file.write(text)
        where = f"please report it with the file {file.name}"
    except OSError:
        where = "please report it with the traceback that WATTLOAD_DEBUG=1 shows"
    _last_line(f"wattload: unexpected error: {said}; {where}")


def _last_line(text: str) -> None:
    try:
        sys.stdout.flush()
    except OSError:
        give_up(sys.stdout)
    say(shown(text), error=True)
