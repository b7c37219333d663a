"""docs/how-to/from-other-tools.md: flags of other load generators, and what wattload has in their place."""

from __future__ import annotations

from pathlib import Path

from wattload.cli.other_tools import COMMANDS, FLAGS
from wattload.config import SETTINGS

PAGE = Path(__file__).resolve().parents[1] / "how-to" / "from-other-tools.md"

_HEAD = """# Coming from another load generator

**What do I write for the flags that I know from `vllm bench serve`, AIPerf, guidellm, k6 or Locust?** Names
that mean the same are accepted. For the others the command says in one sentence what to write, the one of the
second table, and ends with status 2 before any load is sent.

    wattload run localhost:8000 -r 5 -d 10m   # http:// is assumed; arrivals are Poisson where a rate is given
    wattload doctor localhost:8000            # what works, and which flags the endpoint needs
    wattload init                             # every setting in a commented TOML file

Which tool to use when: [comparison](../explanation/comparison.md). What was typed from habit, and what
happened: [typed commands](../research/typed-commands.md).

## Names that are accepted

| flag | also |
|---|---|
| URL (argument) | `--url`, `-u`, `--base-url`, `--target` |
"""


def page() -> str:
    """The page's text."""
    accepted = (
        f"| `{setting.flag}` | {', '.join(f'`{flag}`' for flag in setting.flags)} |"
        for setting in SETTINGS.values()
        if setting.flags
    )
    answered = (f"| `{flag}` | {_cell(advice)} |" for flag, advice in sorted(FLAGS.items()))
    commands = (f"| `{name}` | {_cell(advice)} |" for name, advice in sorted(COMMANDS.items()))
    return (
        _HEAD
        + "\n".join(accepted)
        + "\n\n## Names that are answered\n\n| typed | what to write |\n|---|---|\n"
        + "\n".join(answered)
        + "\n\n## Commands that are answered\n\n| typed | what to write |\n|---|---|\n"
        + "\n".join(commands)
        + "\n"
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
