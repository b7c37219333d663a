"""What each number of run.json means, in a sentence:

shown beside it in the report and in docs/run-directory.md.
"""

from __future__ import annotations

DEFINITIONS: dict[str, str] = {
    "energy.total_joules": "Change of the metered devices' joule counters over the measurement window.",
    "energy.idle_joules": "Idle power times the window's length: what the devices take with the model "
    "loaded and "
    "nothing to do.",
    "energy.prefill_joules": "Joules above idle attributed to computing prompts.",
    "energy.decode_joules": "Joules above idle attributed to generating tokens.",
    "energy.unattributed_joules": "Joules above idle that belong to no request.",
    "energy.mean_watts": "Total joules over the window's length.",
    "energy.uncertainty_joules": "How far the total may be off because the counter steps and the "
    "window's edges "
    "fall between its steps; the sensor's gain is not in it.",
    "energy.per_request_joules.mean": "The window's whole energy, idle and unattributed included, over the "
    "completed of the requests due in it.",
    "energy.per_request_joules.attributed_mean": "Mean of the joules attributed to each completed "
    "request due in "
    "the window; idle is not in it.",
    "energy.per_request_joules.p50": "Half of the completed requests were attributed at most so many joules.",
    "energy.per_request_joules.p90": "90 % of the completed requests were attributed at most so many joules.",
    "energy.per_request_joules.p95": "95 % of the completed requests were attributed at most so many joules.",
    "energy.per_request_joules.p99": "99 % of the completed requests were attributed at most so many joules.",
    "energy.per_output_token_joules": "The window's whole energy over the output tokens of the "
    "completed requests "
    "due in it.",
    "energy.per_token_joules": "The window's whole energy over the prompt and output tokens of the completed "
    "requests due in it.",
    "load.planned_rps": "Requests due in the window over its length.",
    "load.achieved_rps": "Requests sent inside the window over its length.",
    "load.send_lag_seconds.p50": "Median time from a request's due time to its sending: the client's "
    "own lateness.",
    "load.send_lag_seconds.p99": "99 % of requests were sent at most so long after they were due.",
    "load.send_lag_seconds.max": "The latest that a request was sent after it was due.",
    "latency.ttft_seconds": "From the moment a request was due to its first token, so waiting counts; "
    "completed "
    "requests due in the window.",
    "latency.tpot_seconds": "From the first to the last token over the tokens after the first.",
    "latency.itl_seconds": "Gaps between successive chunks that carried tokens (a chunk may carry several).",
    "latency.e2e_seconds": "From the moment a request was due to its last token.",
    "requests.planned": "Rows of the schedule.",
    "requests.sent": "Requests that were sent, over the whole run.",
    "requests.completed": "Requests that ended with a whole answer, over the whole run.",
    "requests.in_window": "Requests whose due time lies in the measurement window.",
    "requests.completed_in_window": "The completed of the requests due in the window.",
    "tokens.prompt": "Prompt tokens of the completed requests due in the window, as the endpoint's "
    "usage counts them.",
    "tokens.output": "Output tokens of the completed requests due in the window, as the endpoint's "
    "usage counts them.",
    "tokens.output_per_second": "Those output tokens over the window's length.",
    "tokens.mismatches": "Completed requests whose token counts were not the planned ones.",
    "tokens.cached": "Prompt tokens that the endpoint took from its prefix cache.",
    "slo.met_fraction": "Requests due in the window that met every limit over all that were due; a "
    "failed one missed.",
    "slo.goodput_rps": "Requests due in the window that met every limit, over its length.",
    "slo.joules_per_good_request": "The window's whole energy over the requests that met every limit.",
    "footprint.energy_kwh_per_1000_requests": "energy.per_request_joules.mean times 1,000 in kilowatt-hours, "
    "within the boundary named.",
}

FLAGS: dict[str, str] = {
    "modelled": "The joules come from a model of a device, not from a sensor.",
    "counter_reset": "A joule counter was reset inside the window; the total is not known.",
    "gpu_lost": "A GPU stopped answering inside the window.",
    "reset_required": "A GPU says that it needs a reset.",
    "stale_sensor": "A sensor kept saying the same for too long, or was not read for over a second.",
    "no_permission": "The meter is not allowed to read a device.",
    "not_supported": "A device does not give its energy.",
    "driver_not_loaded": "A device's driver is not loaded.",
    "driver_mismatch": "A device's driver and library do not fit together.",
    "timeout": "A device did not answer in time.",
    "unknown_error": "The meter met an error without a name.",
    "clock_step": "The meter's clock was stepped.",
    "mig": "The GPU is divided (MIG); the joules are the whole GPU's.",
    "vgpu": "The GPU is shared between virtual machines; the joules are the whole GPU's.",
    "module_scope": "The joules are the module's (GPU and CPU), not the GPU's alone.",
    "partial_coverage": "The meter did not see the whole window.",
    "sensor_disagreement": "The counter and the integral of the power differ by more than they should.",
    "late_simulation": "The virtual GPU ran late against its own plan.",
    "lost_step_records": "Records of engine steps were lost; the split between requests is less sure.",
    "request_id_reused": "Several requests had one id at once; their joules are one sum, without tokens.",
    "idle_not_measured": "Idle power was not measured; the idle part is not known or a default.",
    "model_not_trusted": "The step model has not earned trust yet; the split between requests is less sure.",
    "mixed_sources": "Devices were read by different sensors whose joules are not to be added.",
    "conservation_error": "Requests, idle and unattributed do not add up to the counter's change.",
}


def definition(path: str) -> str:
    """The sentence for a dotted path of run.json; a quantile of a distribution has that of the
    distribution.
    """
    if path in DEFINITIONS:
        return DEFINITIONS[path]
    parent = path.rpartition(".")[0]
    return DEFINITIONS.get(parent, "")
