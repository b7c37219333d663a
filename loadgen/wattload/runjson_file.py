"""Reading run.json back."""

from __future__ import annotations

from pydantic import ValidationError

from wattload.errors import BadInput
from wattload.rundir import RunDir, read_json
from wattload.runjson import RUN_SCHEMA, RunJson


def load_run_json(run: RunDir) -> RunJson:
    """run.json. Raises BadInput where it is missing, cut short, of another schema, or lacks a field."""
    raw = read_json(run.run_json_path)
    found = raw.get("schema")
    if found != RUN_SCHEMA:
        raise BadInput(f"{run.run_json_path}: has schema {found!r}, this wattload reads {RUN_SCHEMA!r} only")
    try:
        return RunJson.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadInput(f"{run.run_json_path}: field {where}: {first['msg']}") from error
