"""A run logged to Weights & Biases: its settings as config, its numbers as the summary, and its files.

The client's own environment variables hold (WANDB_PROJECT, default: wattload; WANDB_MODE=offline writes files
that `wandb sync` sends). Logged again, it is the same run.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from wattload.export.failure import ExportFailed
from wattload.export.figures import description, figures
from wattload.export.identity import identity
from wattload.redaction import shown
from wattload.rundir.run import Run

_START_SECONDS = 20


def export(run: Run) -> str:
    """Logs `run`; where to, as a sentence. Raises ExportFailed."""
    import wandb

    result = run.result
    # Neither the command line nor the state of this machine and its git checkout is the run's.
    settings = wandb.Settings(
        silent=True,
        console="off",
        disable_git=True,
        disable_code=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
        init_timeout=_START_SECONDS,
    )
    try:
        made = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "wattload",
            name=result.name,
            id=identity(run),
            resume="allow",
            config=description(result),
            tags=["valid" if result.valid else "not-valid"],
            settings=settings,
        )
        made.summary.update({figure.path: figure.value for figure in figures(result)})
        if result.reasons:
            made.summary["reasons"] = "; ".join(result.reasons)
        for path in (run.directory.run_json_path, run.directory.report_path):
            if path.exists():
                shutil.copy(path, made.dir)
                made.save(str(Path(made.dir) / path.name), base_path=made.dir)
        where = made.dir if made.offline else made.url
        made.finish()
        return f"Weights & Biases: logged to {shown(str(where))}"
    except (wandb.Error, OSError) as error:
        raise ExportFailed(f"Weights & Biases: {shown(' '.join(str(error).split())[:300])}") from error
