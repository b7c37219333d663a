"""The `wattload` command: one file per subcommand."""

from wattload.cli.app import main

__all__ = ["main"]
