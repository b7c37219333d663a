"""Estimates:

the fit finds known costs again, the online one the energy of a known engine, the bound stays below.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synthetic_run import Synthetic
from wattload.analysis.compute import finish
from wattload.analysis.window import decide_window
from wattload.calibration.measure import choose_shapes
from wattload.errors import BadInput
from wattload.estimates.binned import binned_joules
from wattload.estimates.calibration_file import (
    PROFILE_SCHEMA,
    Profile,
    ShapeCost,
    load_profile,
    power_of_two_bin,
    workload_bins,
)
from wattload.estimates.gpu_table import find_gpu, gpus, require_gpu
from wattload.estimates.model_shape import known_shape, shape_from_config, shape_from_file
from wattload.estimates.online import simulate
from wattload.estimates.roofline import least_steps
from wattload.estimates.rules_of_thumb import Work, flops_tdp_joules
from wattload.estimates.section import estimates
from wattload.estimates.step_cost import StepCost, fit, step_model
from wattload.report.page import estimate_ratios
from wattload.rundir.requests import read_requests
from wattload.rundir.result import RunJson, TargetInfo
from wattload.rundir.run import RunData

IDLE = 125.0
# The step model that was measured on an H200 with Llama-3.1-8B.
TRUE = StepCost(
    step_model(
        joules=np.array([1.84, 0.0143, 0.0, 0.0148, 25e-6]),
        seconds=np.array([5.03e-3, 8.5e-6, 0.0, 0.0, 4.2e-8]),
    ),
    start_seconds=0.003,
    limit_watts=700.0 - IDLE,
    seconds_error=0.0,
    joules_error=0.0,
)


def measured(prompt: int, output: int, batch: int) -> ShapeCost:
    """What a batch costs on an engine that costs what TRUE says."""
    shape = np.full(batch, prompt), np.full(batch, output)
    done = simulate(np.zeros(batch), *shape, TRUE, IDLE)
    return ShapeCost(
        prompt_tokens=prompt,
        output_tokens=output,
        batch=batch,
        waves=1,
        seconds=float(done.last.max()),
        above_idle_joules=float(done.joules[-1]),
        ttft_seconds=float(np.median(done.first)),
    )


@pytest.fixture(scope="module")
def profile() -> Profile:
    grid = [(i, o, b) for i in (128, 512, 2048) for o in (8, 64, 256) for b in (1, 8, 64)]
    return Profile(
        schema=PROFILE_SCHEMA,
        created_unix=0.0,
        target=TargetInfo(url="http://x", energy_source="nvml"),
        idle_watts=IDLE,
        power_limit_watts=700.0,
        shapes=[measured(*shape) for shape in grid],
    )


def workload(rate: float, seconds: float = 60.0) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(1)
    count = int(rate * seconds)
    due = np.sort(rng.uniform(0, seconds, count))
    prompt = np.clip(rng.lognormal(6.5, 0.8, count), 1, 8000).astype(np.int64)
    output = np.clip(rng.lognormal(4.5, 0.8, count), 1, 1000).astype(np.int64)
    return due, prompt, output


def test_the_fit_finds_the_costs_again(profile: Profile) -> None:
    cost = fit(profile)
    found, true = cost.terms("joules"), TRUE.terms("joules")
    assert found[[0, 1, 3, 4]] == pytest.approx(true[[0, 1, 3, 4]], rel=0.03)
    assert cost.model.fixed_seconds == pytest.approx(TRUE.model.fixed_seconds, rel=0.05)
    assert cost.joules_error < 0.01


@pytest.mark.parametrize("rate", [1.0, 8.0, 20.0, 40.0])
def test_online_comes_within_three_percent(profile: Profile, rate: float) -> None:
    due, prompt, output = workload(rate)
    truth = simulate(due, prompt, output, TRUE, IDLE).window_joules(10, 60)
    guess = simulate(due, prompt, output, fit(profile), IDLE).window_joules(10, 60)
    assert guess == pytest.approx(truth, rel=0.03)


def test_offline_does_not_know_the_rate_and_is_off_where_it_is_low(profile: Profile) -> None:
    due, prompt, output = workload(0.5)
    truth = simulate(due, prompt, output, TRUE, IDLE).window_joules(0, 60)
    offline = binned_joules(profile, fit(profile), prompt, output)
    assert offline.joules < 0.6 * truth


def test_the_scheduler_conserves_and_orders() -> None:
    due, prompt, output = workload(10.0)
    done = simulate(due, prompt, output, TRUE, IDLE)
    assert not np.isnan(done.last).any() or (output == 1).any()
    assert (done.first >= due).all()
    known = ~np.isnan(done.last)
    assert (done.last[known] >= done.first[known]).all()
    least = TRUE.model.prefill_token_joules * prompt.sum()
    least += TRUE.model.decode_token_joules * (output - 1).sum()
    assert done.joules[-1] >= least
    whole = done.window_joules(-1.0, float(done.ends[-1]) + 1.0)
    assert whole == pytest.approx(done.joules[-1] + IDLE * (done.ends[-1] + 2.0))
    halves = done.window_joules(0, 20.3) + done.window_joules(20.3, 50)
    assert halves == pytest.approx(done.window_joules(0, 50))


def test_one_token_answers_end_with_their_prompt() -> None:
    done = simulate(np.zeros(3), np.full(3, 100), np.ones(3, np.int64), TRUE, IDLE)
    assert np.isfinite(done.first).all()
    assert np.array_equal(done.first, done.last)


def test_lengths_are_rounded_up_to_powers_of_two() -> None:
    assert power_of_two_bin([1, 8, 9, 1000, 1024, 1025]).tolist() == [8, 8, 16, 1024, 1024, 2048]
    assert workload_bins([10, 16, 17], [1, 8, 9]) == {(16, 8): 2, (32, 16): 1}


def test_a_batch_of_one_shape_costs_what_was_measured(profile: Profile) -> None:
    shape = next(s for s in profile.shapes if s.key == (512, 64, 64))
    found = binned_joules(profile, fit(profile), np.full(128, 512), np.full(128, 64))
    assert found.joules == pytest.approx(2 * profile.batch_joules(shape))
    assert found.filled_in == 0.0
    assert binned_joules(profile, fit(profile), [30], [30]).filled_in == 1.0


def test_shapes_are_chosen_where_the_mass_is() -> None:
    _, prompt, output = workload(50.0)
    shapes = choose_shapes(prompt, output, count=20, max_batch=64, max_model_len=8192)
    assert len(shapes) == len(set(shapes)) == 20
    assert {s.batch for s in shapes} > {1, 8}
    assert all(s.prompt_tokens + s.output_tokens <= 8192 for s in shapes)
    more = choose_shapes(prompt, output, count=40, max_batch=64, max_model_len=8192)
    assert more[:5] == shapes[:5]
    with pytest.raises(BadInput, match="no bin"):
        choose_shapes([5000], [5000], count=10, max_batch=8, max_model_len=4096)


LLAMA = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "torch_dtype": "bfloat16",
}


def test_parameters_of_known_models() -> None:
    """Published: Llama-3.1-8B has 8.03 G parameters, Mixtral-8x7B 46.7 G of which 12.9 G are active."""
    shape = shape_from_config(LLAMA, "x")
    assert shape.body_parameters + 2 * shape.head_parameters == pytest.approx(8.03e9, rel=0.002)
    assert shape.kv_bytes_per_token == 131_072
    mixtral = known_shape("mistralai/Mixtral-8x7B-Instruct-v0.1")
    assert mixtral is not None
    assert mixtral.body_parameters + 2 * mixtral.head_parameters == pytest.approx(46.7e9, rel=0.005)
    assert mixtral.active_parameters + 2 * mixtral.head_parameters == pytest.approx(12.9e9, rel=0.01)
    assert known_shape("meta-llama/Llama-3.1-8B-Instruct") == shape
    assert known_shape("unheard-of") is None


def test_flops_are_about_two_a_parameter_and_token() -> None:
    shape = shape_from_config(LLAMA, "x")
    body = 2 * shape.body_parameters * 110
    attention = shape.attention_flops * 110 * 109 / 2
    assert shape.flops(100, 10) == pytest.approx(body + 2 * shape.head_parameters * 10 + attention, rel=0.01)
    assert shape.flops(100, 10, 50) < shape.flops(100, 10)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"hidden_size": None}, "lacks hidden_size"),
        ({"num_hidden_layers": "many"}, "num_hidden_layers = 'many'"),
        ({"torch_dtype": "ternary"}, "torch_dtype 'ternary' is not known"),
        ({"quantization_config": {"quant_method": "own"}}, "does not say its bits"),
    ],
)
def test_a_config_that_cannot_be_read_gets_a_sentence(
    tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**LLAMA, **change}))
    with pytest.raises(BadInput, match=sentence):
        shape_from_file(tmp_path)


def test_gpus_are_found_by_what_the_meter_calls_them() -> None:
    for name, expected in (
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA A100-SXM4-80GB", "a100-sxm-80gb"),
        ("NVIDIA RTX A6000", "rtx-a6000"),
        ("NVIDIA H200 (modelled)", "h200"),
    ):
        found = find_gpu(name)
        assert found is not None
        assert found.id == expected
    assert find_gpu("Voodoo 2") is None
    assert all(gpu.sparse_flops > gpu.dense_flops for gpu in gpus())
    with pytest.raises(BadInput, match="gpu Voodoo 2"):
        require_gpu("Voodoo 2")


def test_users_add_gpus(tmp_path: Path) -> None:
    table = tmp_path / "mine.toml"
    table.write_text(
        '[[gpu]]\nid = "mine"\ntdp_watts = 10\ndense_tflops = 1\nsparse_tflops = 2\n'
        'memory_gb_per_s = 3\nmemory_gb = 4\nsource = "me"\n'
    )
    assert require_gpu("mine", table).tdp_watts == 10.0
    table.write_text('[[gpu]]\nid = "mine"\nsource = "me"\n')
    gpus.cache_clear()
    with pytest.raises(BadInput, match="number 1: needs tdp_watts"):
        find_gpu("mine", table)


def test_the_sparse_peak_halves_the_naive_estimate() -> None:
    shape, gpu = known_shape("llama-3.1-8b"), require_gpu("rtx-a6000")
    assert shape is not None
    work = Work(np.array([100.0]), np.array([10.0]), np.array([0.0]), 1.0, 1.0, 1)
    dense, sparse = (flops_tdp_joules(work, shape, gpu, sparse=s) for s in (False, True))
    assert dense / sparse == pytest.approx(309.7 / 154.8)


def test_steps_are_never_more_than_there_were() -> None:
    due, prompt, output = workload(10.0)
    done = simulate(due, prompt, output, TRUE, IDLE)
    steps = done.steps[(done.ends >= 10) & (done.ends < 50)].sum()
    least = least_steps(done.first, done.last, output.astype(float), 10.0, 50.0)
    assert 0.3 * steps < least <= steps


@pytest.mark.parametrize("rate", [0.5, 5.0, 15.0, 35.0])
def test_the_bound_is_below_what_the_engine_takes(tmp_path: Path, rate: float, profile: Profile) -> None:
    """A run directory of an engine that costs what was measured on an H200, at several loads."""
    path = tmp_path / "profile.json"
    profile.save(path)
    due, prompt, output = workload(rate)
    done = simulate(due, prompt, output, TRUE, IDLE)
    maker = Synthetic(
        rate=rate,
        duration=60.0,
        requests=len(due),
        model="llama-3.1-8b",
        device="NVIDIA H200",
        idle_watts=IDLE,
        gaps=False,
    )
    maker.lengths = (due, prompt, output, done.first, done.last)
    run = maker.write(tmp_path / "run")
    capture = run.load_capture()
    assert capture.energy_window is not None
    total = done.window_joules(10, 60)
    capture.energy_window |= {"total_joules": total, "idle_joules": 50 * IDLE}
    capture.energy_window["attributed_joules"] = {"prefill": 0.0, "decode": total - 50 * IDLE}
    capture.config["estimates"] = {"profile": str(path)}
    run.save_capture(capture)
    found = finish(run).estimates
    assert found is not None
    assert 0.2 < found["roofline_ratio"] < 1.0
    assert found["online_ratio"] == pytest.approx(1.0, abs=0.03)
    by_key = {entry["key"]: entry for entry in found["all"]}
    assert by_key["flops_tdp_sparse"]["joules"] == pytest.approx(by_key["flops_tdp"]["joules"] / 2)


def test_without_gpu_or_model_the_reason_is_given(tmp_path: Path) -> None:
    found = finish(Synthetic(rate=5.0, duration=20.0, warmup=2.0).write(tmp_path / "run")).estimates
    assert found is not None
    assert found["roofline_joules"] is None
    by_key = {entry["key"]: entry for entry in found["all"]}
    assert "--gpu" in by_key["roofline"]["reason"]
    assert "--model-config" in by_key["flops_tdp"]["reason"]
    assert "--profile" in by_key["binned"]["reason"]


def test_bad_profiles_get_a_sentence(tmp_path: Path, profile: Profile) -> None:
    path = tmp_path / "p.json"
    profile.model_copy(update={"shapes": []}).save(path)
    with pytest.raises(BadInput, match="no measured shapes"):
        load_profile(path)
    path.write_text('{"schema": "other"}')
    with pytest.raises(BadInput, match="schema 'other'"):
        load_profile(path)
    with pytest.raises(BadInput, match="6 are needed"):
        fit(profile.model_copy(update={"shapes": profile.shapes[:5]}))


def test_requests_without_counts_have_no_estimate_of_zero(tmp_path: Path) -> None:
    """It was 0 J of a load that nobody had counted, and its report could not be made."""
    written = Synthetic(
        rate=5.0, duration=20.0, warmup=2.0, model="llama-3.1-8b", device="NVIDIA H200"
    ).write(tmp_path / "run")
    finish(written)
    capture, requests = written.load_capture(), read_requests(written)
    uncounted = dataclasses.replace(requests, output=np.full(len(requests), np.nan))
    data = RunData.read(written, capture, decide_window(capture, requests), uncounted)
    found = estimates(data, 1000.0, 100.0)
    assert found is not None
    joules = {entry["key"]: entry["joules"] for entry in found["all"]}
    assert joules.pop("utilisation_tdp") > 0
    assert set(joules.values()) == {None}
    assert all(entry["reason"] for entry in found["all"] if entry["joules"] is None)


def test_an_estimate_of_nothing_has_no_place_on_a_logarithmic_axis() -> None:
    rows = [{"title": "none", "ratio_to_measured": 0.0}, {"title": "half", "ratio_to_measured": 0.5}]
    run = RunJson.model_construct(estimates={"all": rows})
    assert estimate_ratios(run) == {"half": 0.5}
