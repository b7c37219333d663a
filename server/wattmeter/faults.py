"""Named reasons for which an energy figure is invalid or partial. A fault is never a zero."""

from __future__ import annotations

from enum import StrEnum


class Fault(StrEnum):
    """Why a reading, a counter interval or an energy figure cannot be taken at face value.

    The value of each member is the name that appears in `flags` of `/energy`, in run.json and in the `reason`
    label of `wattserve_meter_faults_total`.
    """

    COUNTER_RESET = "counter_reset"
    GPU_LOST = "gpu_lost"
    RESET_REQUIRED = "reset_required"
    STALE_SENSOR = "stale_sensor"
    NO_PERMISSION = "no_permission"
    NOT_SUPPORTED = "not_supported"
    DRIVER_NOT_LOADED = "driver_not_loaded"
    DRIVER_MISMATCH = "driver_mismatch"
    TIMEOUT = "timeout"
    UNKNOWN_ERROR = "unknown_error"
    CLOCK_STEP = "clock_step"
    MIG = "mig"
    VGPU = "vgpu"
    MODULE_SCOPE = "module_scope"
    PARTIAL_COVERAGE = "partial_coverage"
    SENSOR_DISAGREEMENT = "sensor_disagreement"
    LATE_SIMULATION = "late_simulation"
    LOST_STEP_RECORDS = "lost_step_records"
    REQUEST_ID_REUSED = "request_id_reused"
    IDLE_NOT_MEASURED = "idle_not_measured"
    MODEL_NOT_TRUSTED = "model_not_trusted"
    MODELLED = "modelled"
