"""`wattload calibrate URL`, also called `profile`: what a grid of request shapes costs on an endpoint."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from wattload.calibration.measure import choose_shapes, covered_mass, measure_shape
from wattload.energy.probe import probe
from wattload.errors import InputError
from wattload.estimates.calibration_file import PROFILE_SCHEMA, Profile, load_profile
from wattload.estimates.step_cost import fit
from wattload.traces import load as load_trace


def register(app: typer.Typer) -> None:
    app.command("calibrate")(calibrate)


def calibrate(  # noqa: PLR0917 - options of a command
    url: Annotated[str, typer.Argument(help="The endpoint, as http://host:port.")],
    trace: Annotated[
        str, typer.Option(help="Measure the request shapes of this workload: a name or a file.")
    ] = "conv",
    out: Annotated[
        Path, typer.Option(help="Write the calibration here; one that is there is continued.")
    ] = Path("profile.json"),
    shapes: Annotated[int, typer.Option(min=6, help="Measure at most this many shapes.")] = 24,
    budget: Annotated[
        float | None, typer.Option(help="Measure no further shape after this many seconds.")
    ] = None,
    max_batch: Annotated[int, typer.Option(min=2, help="Send at most this many requests in a batch.")] = 64,
    seconds: Annotated[
        float, typer.Option(min=0.5, help="Measure this many seconds of work of each shape.")
    ] = 4.0,
    max_batched_tokens: Annotated[
        int,
        typer.Option(min=1, help="The engine's limit of tokens per step (vLLM: --max-num-batched-tokens)."),
    ] = 8192,
    max_seqs: Annotated[
        int, typer.Option(min=1, help="The engine's limit of sequences per step (vLLM: --max-num-seqs).")
    ] = 256,
    model: Annotated[
        str | None,
        typer.Option(help="Name of the model to request. Default: the first that the endpoint lists."),
    ] = None,
    energy: Annotated[
        str | None, typer.Option(help="Source of energy, as for `wattload run`. Default: the target.")
    ] = None,
) -> None:
    """Measure a calibration: what batches of a workload's request shapes cost on an endpoint.

    The file is saved after each shape; the same command continues one that was interrupted.
    """
    if energy == "none":
        raise InputError("--energy none: a calibration measures energy")
    answer = probe(url, energy_url=energy, model=model)
    idle = (answer.energy or {}).get("idle") or {}
    if answer.energy is None or not isinstance(idle.get("watts"), (int, float)):
        raise InputError(f"{url}: gives no idle power, which a calibration needs")
    limits = [float(device.get("power_limit_watts") or 0.0) for device in answer.target.devices]
    fresh = Profile(
        schema=PROFILE_SCHEMA,
        created_unix=time.time(),
        target=answer.target,
        idle_watts=float(idle["watts"]),
        power_limit_watts=sum(limits) if limits and all(limits) else None,
        max_batched_tokens=max_batched_tokens,
        max_seqs=max_seqs,
        workload=trace,
    )
    current = _continued(out, fresh) if out.exists() else fresh
    rows = load_trace(trace)
    wanted = choose_shapes(
        rows.prompt_tokens,
        rows.output_tokens,
        count=shapes,
        max_batch=min(max_batch, max_seqs),
        max_model_len=answer.target.max_model_len,
    )
    settings: dict[str, Any] = {"url": url, "model": model, "energy": energy}
    begun, done = time.monotonic(), {shape.key for shape in current.shapes}
    warm = False
    for number, shape in enumerate(wanted):
        if shape.key in done:
            continue
        if budget is not None and time.monotonic() - begun > budget:
            typer.echo(f"budget of {budget:g} s used up after {len(current.shapes)} shapes")
            break
        seed = int(time.time()) * 1000 % 2**31 + 2 * number
        current.shapes.append(
            measure_shape(settings, shape, seed=seed, seconds=seconds, warm=warm, say=typer.echo)
        )
        warm = True
        current.save(out)
    _summary(current, rows.prompt_tokens, rows.output_tokens, out)


def _continued(path: Path, fresh: Profile) -> Profile:
    """The profile at `path`, if it is of the same endpoint and settings. Raises InputError otherwise."""
    old = load_profile(path)
    for name, was, now in (
        ("model", old.target.model, fresh.target.model),
        ("engine", old.target.engine, fresh.target.engine),
        ("source of energy", old.target.energy_source, fresh.target.energy_source),
        ("--max-batched-tokens", old.max_batched_tokens, fresh.max_batched_tokens),
        ("--max-seqs", old.max_seqs, fresh.max_seqs),
    ):
        if was != now:
            raise InputError(f"--out {path}: is a profile with another {name} ({was}, now {now})")
    return old


def _summary(current: Profile, prompt: Any, output: Any, out: Path) -> None:
    mass = covered_mass(prompt, output, {(s.prompt_tokens, s.output_tokens) for s in current.shapes})
    typer.echo(f"{len(current.shapes)} shapes; their bins hold {mass:.1%} of the workload's requests")
    cost = fit(current)
    fixed, prompt_token, attention, token, context = cost.terms("joules")
    word = " simulated" if current.modelled else ""
    typer.echo(
        f"a step{word}: {fixed:.3g} J + {prompt_token * 1e3:.3g} mJ a prompt token + {token * 1e3:.3g} "
        "mJ an output "
        f"token + {context * 1e6:.3g} µJ a context token + {attention * 1e9:.3g} nJ a pair of prompt tokens; "
        f"error on the shapes {cost.joules_error:.1%} of energy, {cost.seconds_error:.1%} of time"
    )
    typer.echo(f"profile: {out}")
