"""JSON Schemas (2020-12) of what scripts read: run.json, and the answers of `/energy`.

Fields and types come from the classes that write them; only the meaning of a field of `/energy` stands here.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wattload.rundir.result import RUN_SCHEMA, RunJson
from wattmeter import schema as energy
from wattmeter.faults import Fault
from wattmeter.schema import ENERGY_SCHEMA

DIALECT = "https://json-schema.org/draft/2020-12/schema"
ROOT = Path(__file__).resolve().parents[2]
RUN_FILE = ROOT / "loadgen" / "wattload" / "rundir" / "run.schema.json"
ENERGY_FILE = ROOT / "server" / "wattmeter" / "energy.schema.json"

# What a field of `/energy` means, by class and key.
MEANINGS: dict[str, dict[str, str]] = {
    "RequestEnergy": {
        "id": "The request's id: its header x-request-id.",
        "status": "provisional: estimated by the step model until the counter covers the last step; "
        "settled: final; unknown: no such request.",
        "joules": "Attributed energy: above idle power. Null with a reason.",
        "prefill_joules": "Its part for reading the prompt.",
        "decode_joules": "Its part for generating.",
        "uncertainty_joules": "One standard deviation of joules.",
        "prompt_tokens": "Tokens of the prompt.",
        "output_tokens": "Tokens generated.",
        "source": "Which sensor, or model, the joules come from.",
        "group": "The tenant: the header x-energy-group.",
        "aborted": "The client went away before the end.",
        "flags": "Named faults and qualifications.",
        "reason": "Why joules is null.",
        "hosts": "Hosts with GPUs of the engine, if several; the joules are the sum, or with the flag "
        "other_hosts those of one host.",
    },
    "UsageEnergy": {
        "joules": "Attributed energy of this request: above idle power.",
        "prefill_joules": "Its part for reading the prompt.",
        "decode_joules": "Its part for generating.",
        "uncertainty_joules": "One standard deviation of joules.",
        "status": "provisional or settled, as in RequestEnergy.",
        "source": "Which sensor, or model, the joules come from.",
        "estimated": "True where the engine sends no step records: an estimate from the stream.",
        "hosts": "Hosts whose joules were added up, if the engine uses GPUs of several.",
    },
    "DeviceEnergy": {
        "id": "The device's id: a GPU's UUID.",
        "name": "The device's name.",
        "source": "Which sensor its joules come from.",
        "joules": "Energy of the device in the window, idle included.",
        "uncertainty_joules": "One standard deviation, from the window's edges, without the sensor's gain.",
        "covered_seconds": "Seconds of the window of which the counter's change is known.",
        "flags": "Named faults and qualifications of this device.",
    },
    "WindowEnergy": {
        "start": "Begin of the window, UNIX seconds of the server's clock.",
        "end": "End of the window.",
        "complete": "Every second is final and was covered; if false, ask again a few seconds later.",
        "total_joules": "Energy of all devices: idle + prefill + decode + unattributed (+ startup).",
        "uncertainty_joules": "One standard deviation of the total.",
        "idle_joules": "Idle power times time; null where idle power was never measured.",
        "attributed_joules": "Energy above idle of requests, by phase; null without engine steps.",
        "unattributed_joules": "Energy above idle that belongs to no request.",
        "devices": "The same by device.",
        "groups": "Attributed energy by tenant, with group_by=tag.",
        "flags": "Named faults and qualifications of the window.",
        "reason": "Why nothing is attributed.",
    },
    "DeviceSeries": {
        "id": "The device's id.",
        "name": "The device's name.",
        "source": "Which sensor its joules come from.",
        "unix_seconds": "When the counter was updated.",
        "joules": "Energy since the start of the server, at that time.",
        "watts": "Mean power over the update that ended there.",
    },
    "DeviceStatus": {
        "id": "The device's id.",
        "name": "The device's name.",
        "source": "Which sensor its joules come from.",
        "power_watts": "Power as the sensor gave it last.",
        "energy_joules": "Energy since the start of the server.",
        "power_limit_watts": "The limit that the driver enforces.",
        "sample_age_seconds": "Time since the sensor gave a new value.",
        "temperature_celsius": "Temperature.",
        "sm_clock_hertz": "Clock of the multiprocessors.",
        "faults": "How often each named fault began.",
        "flags": "Faults that last.",
    },
    "IdleState": {
        "watts": "Power of all devices with no request running.",
        "how": "measured, given, or null: not known.",
        "measured_unix": "When it was measured.",
        "uncertainty_watts": "One standard deviation.",
    },
}


def run_schema() -> dict[str, Any]:
    """Of run.json."""
    made = RunJson.model_json_schema(by_alias=True, mode="serialization")
    version = RUN_SCHEMA.removeprefix("wattload.")
    made["properties"]["schema"]["const"] = RUN_SCHEMA
    return {"$schema": DIALECT, "$id": f"urn:wattload:{version.replace('/', ':')}", **_tidy(made)}


def _tidy(node: Any) -> Any:
    """Without pydantic's titles that merely repeat a key, and without what only our own tables need."""
    if isinstance(node, dict):
        ours = ("when_null", "interval", "number")
        kept = {key: _tidy(value) for key, value in node.items() if key not in ours}
        for key in ("unit", "group", "title"):
            if kept.get(key) in ("", None) and key in kept:
                del kept[key]
        return kept
    return [_tidy(each) for each in node] if isinstance(node, list) else node


def energy_schema() -> dict[str, Any]:
    """Of the answers of `/energy` and of `usage.energy`, one definition for each."""
    kinds = {name: getattr(energy, name) for name in MEANINGS if name != "UsageEnergy"}
    definitions = {name: _object(kind, MEANINGS[name], _example(kind)) for name, kind in kinds.items()}
    told = energy.RequestEnergy("", energy.SETTLED, 0.0, flags=frozenset({Fault.ESTIMATED}), hosts=2)
    usage = told.to_usage()["energy"]
    definitions["UsageEnergy"] = _object(energy.RequestEnergy, MEANINGS["UsageEnergy"], usage)
    unknown = list(energy.RequestEnergy("", energy.UNKNOWN).to_json())
    definitions["RequestEnergy"]["required"] = unknown
    known = [energy.PROVISIONAL, energy.SETTLED]
    definitions["RequestEnergy"]["properties"]["status"]["enum"] = [*known, energy.UNKNOWN]
    definitions["UsageEnergy"]["properties"]["status"]["enum"] = known
    phases = {"type": ["number", "null"]}
    window = definitions["WindowEnergy"]["properties"]
    window["attributed_joules"] |= {"type": "object", "properties": {"prefill": phases, "decode": phases}}
    window["devices"] |= {"type": "array", "items": {"$ref": "#/$defs/DeviceEnergy"}}
    window["groups"] |= {"type": ["object", "null"], "additionalProperties": {"type": "number"}}
    window["hosts_of_engines"] = {
        "description": "With the flag other_hosts: how many hosts have GPUs of each engine, by its id.",
        "type": "object",
        "additionalProperties": {"type": "integer"},
    }
    # What only a meter with further sensors adds to a window.
    window["components"] = {
        "description": "Energy of the host beside the accelerators, by component; in no other figure.",
        "type": "object",
        "additionalProperties": {
            "type": "object",
            "properties": {
                "source": {"type": "string"},
                "joules": {"type": ["number", "null"]},
                "uncertainty_joules": {"type": ["number", "null"]},
                "reason": {"type": "string"},
                "devices": {"type": "array", "items": {"type": "string"}},
                "flags": {"type": "array", "items": {"$ref": "#/$defs/Flag"}},
            },
            "required": ["source", "joules", "devices", "flags"],
        },
    }
    definitions["UsageEnergy"]["properties"]["estimated"] |= {"type": "boolean"}
    definitions["Flag"] = {
        "description": "Named faults and qualifications; a newer server may have further ones.",
        "anyOf": [{"enum": [fault.value for fault in Fault]}, {"type": "string"}],
    }
    return {
        "$schema": DIALECT,
        "$id": f"urn:wattmeter:{ENERGY_SCHEMA.removeprefix('wattmeter.').replace('/', ':')}",
        "title": ENERGY_SCHEMA,
        "description": "Answers of /energy, by definition: WindowEnergy of GET /energy?start=&end=, "
        "RequestEnergy of GET /energy/requests/{id}, DeviceSeries of an entry of GET /energy/series, "
        "DeviceStatus and IdleState of parts of GET /energy, UsageEnergy of usage.energy in a response.",
        "$defs": dict(sorted(definitions.items())),
    }


def _example(kind: Any) -> dict[str, Any]:
    """A written value of a class, for its keys."""
    given: dict[str, Any] = {}
    for each in dataclasses.fields(kind):
        if each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING:
            given[each.name] = np.zeros(0) if each.type == "F64" else ""
    made = kind(**given)
    if kind is energy.WindowEnergy:
        return {**made.to_json(groups=True), **dataclasses.replace(made, reason="-").to_json()}
    if kind is energy.RequestEnergy:
        made = dataclasses.replace(made, status=energy.SETTLED, reason="-", hosts=2)
    return dict(made.to_json())


def _object(kind: Any, meanings: Mapping[str, str], written: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of one class. Raises ValueError where a key has no meaning here, or a meaning no key."""
    if set(written) != set(meanings):
        differing = sorted(set(written) ^ set(meanings))
        raise ValueError(f"MEANINGS of {kind.__name__} and the keys that it writes differ: {differing}")
    types = typing.get_type_hints(kind)
    renamed = {"start": "start_unix", "end": "end_unix"}
    properties = {
        key: {**_type(types.get(renamed.get(key, key))), "description": meanings[key]} for key in written
    }
    required = [key for key in written if key not in {"reason", "groups", "estimated", "hosts"}]
    return {"type": "object", "properties": properties, "required": required}


def _type(hint: Any) -> dict[str, Any]:
    if hint is None:
        return {}
    text = str(hint)
    if "frozenset" in text:
        return {"type": "array", "items": {"$ref": "#/$defs/Flag"}}
    if "ndarray" in text:
        return {"type": "array", "items": {"type": ["number", "null"]}}
    if "dict[str, int]" in text:
        return {"type": "object", "additionalProperties": {"type": "integer"}}
    names = {"float": "number", "int": "integer", "str": "string", "bool": "boolean", "NoneType": "null"}
    kinds = typing.get_args(hint) or (hint,)
    found = [names[each.__name__] for each in kinds if getattr(each, "__name__", "") in names]
    return {"type": found[0] if len(found) == 1 else found} if found else {}


def text(made: Mapping[str, Any]) -> str:
    return json.dumps(made, indent=1, ensure_ascii=False) + "\n"
