"""The `wattload` command: registers the modules of `wattload.commands` and turns failures into exit
statuses.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import Any

import typer

from wattload.errors import BadInput, RunInvalid

_INTERRUPTED = 130
_COMMANDS = ("run", "demo", "sweep", "compare", "report", "traces", "estimate", "profile", "worker")


def make_app(only: str | None = None) -> typer.Typer:
    """The application; with `only`, a command's name, nothing else is imported.

    A load generator must not carry the analysis' libraries, and `report` needs no Locust, which patches
    sockets.
    """
    app = typer.Typer(
        name="wattload",
        help="Measures what an LLM endpoint's traffic costs in energy.",
        no_args_is_help=True,
        add_completion=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )
    app.callback()(lambda: None)
    for name in (only,) if only in _COMMANDS else _COMMANDS:
        if importlib.util.find_spec(f"wattload.commands.{name}") is not None:
            module: Any = importlib.import_module(f"wattload.commands.{name}")
            module.register(app)
    return app


def main(arguments: list[str] | None = None) -> None:
    """Exit status 0: done; 1: the run is invalid or an assertion failed; 2: bad arguments. 130:
    interrupted.
    """
    given = sys.argv[1:] if arguments is None else arguments
    try:
        code = make_app(given[0] if given else None)(args=given, standalone_mode=False)
        if code == _INTERRUPTED:  # Typer makes a status of Ctrl-C and says nothing
            _last_line("wattload: interrupted")
        sys.exit(code if isinstance(code, int) else 0)
    except BadInput as error:
        _last_line(f"wattload: {error}")
        sys.exit(2)
    except RunInvalid as error:
        _last_line(f"wattload: {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        _last_line("wattload: interrupted")
        sys.exit(_INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except Exception as error:
        # Typer's own (of its copy of Click, or of Click, depending on its version) know how to say
        # themselves.
        said = getattr(error, "format_message", None)
        if said is None:
            if type(error).__name__ == "Abort":
                _last_line("wattload: interrupted")
                sys.exit(_INTERRUPTED)
            raise
        _last_line(f"wattload: {said() or 'see --help'}")
        sys.exit(2)


def _last_line(text: str) -> None:
    sys.stdout.flush()
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
