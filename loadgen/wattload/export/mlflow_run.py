"""A run logged to MLflow: its settings as parameters, its numbers as metrics, run.json and the report.

MLflow's own environment variables say where (MLFLOW_TRACKING_URI) and as which experiment
(MLFLOW_EXPERIMENT_NAME; default: wattload). Logged again, it is the same run of MLflow.
"""

from __future__ import annotations

import os
from typing import Any

from wattload.export.failure import ExportFailed
from wattload.export.figures import description, figures
from wattload.export.identity import identity
from wattload.redaction import shown
from wattload.rundir.run import Run

_ID = "wattload.id"
_LONGEST_PARAMETER = 500
# MLflow waits two minutes for a response, and asks eight times. Its thread for usage statistics changes the
# environment while requests are made, which then fail. And it prints addresses where JSON may be expected.
_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def export(run: Run) -> str:
    """Logs `run`; where to, as a sentence. Raises ExportFailed."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    import mlflow

    result = run.result
    try:
        if not os.environ.get("MLFLOW_EXPERIMENT_NAME") and not os.environ.get("MLFLOW_EXPERIMENT_ID"):
            mlflow.set_experiment("wattload")
        before = mlflow.search_runs(
            filter_string=f"tags.`{_ID}` = '{identity(run)}'", max_results=1, output_format="list"
        )
        about = {name: str(value)[:_LONGEST_PARAMETER] for name, value in description(result).items()}
        known: dict[str, Any] = {"run_id": before[0].info.run_id} if before else {"run_name": result.name}
        with mlflow.start_run(**known) as made:
            mlflow.set_tags({_ID: identity(run), "wattload.valid": str(result.valid).lower()})
            if result.reasons:
                mlflow.set_tag("wattload.reasons", "; ".join(result.reasons))
            if not before:
                mlflow.log_params(about)
            mlflow.log_metrics({figure.path: figure.value for figure in figures(result)})
            for path in (run.directory.run_json_path, run.directory.report_path):
                if path.exists():
                    mlflow.log_artifact(str(path))
            where = mlflow.get_tracking_uri()
            return f"MLflow: logged as run {made.info.run_id} to {shown(where)}"
    except (mlflow.exceptions.MlflowException, OSError) as error:
        # Without an address MLflow takes a database in this folder, which its small distribution cannot.
        hint = (
            ""
            if os.environ.get("MLFLOW_TRACKING_URI")
            else "; set MLFLOW_TRACKING_URI to your server's address"
        )
        raise ExportFailed(f"MLflow: {_first_line(error)}{hint}") from error


def _first_line(error: Exception) -> str:
    return shown(next(iter(str(error).strip().splitlines()), type(error).__name__)[:300])
