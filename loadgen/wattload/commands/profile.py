"""`wattload profile URL`: what a grid of request shapes costs on an endpoint."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from wattload.energy_probe import probe
from wattload.errors import BadInput
from wattload.estimates.profile import PROFILE_SCHEMA, Profile, load_profile
from wattload.estimates.profiling import choose_shapes, covered_mass, measure_shape
from wattload.estimates.stepcost import fit
from wattload.traces import load as load_trace


def register(app: typer.Typer) -> None:
    app.command("profile")(profile)


def profile(  # noqa: PLR0917 - options of a command
    url: Annotated[str, typer.Argument(help="The endpoint, as http://host:port.")],
    trace: Annotated[
        str, typer.Option(help="The workload whose shapes are measured: a name or a file.")
    ] = "conv",
    out: Annotated[Path, typer.Option(help="The profile to write; one that is there is continued.")] = Path(
        "profile.json"
    ),
    shapes: Annotated[int, typer.Option(min=6, help="How many shapes to measure at most.")] = 24,
    budget: Annotated[
        float | None, typer.Option(help="Seconds after which no further shape is begun.")
    ] = None,
    max_batch: Annotated[int, typer.Option(min=2, help="Most requests in a batch.")] = 64,
    seconds: Annotated[float, typer.Option(min=0.5, help="Seconds of work to measure of each shape.")] = 4.0,
    max_batched_tokens: Annotated[
        int, typer.Option(min=1, help="The engine's limit of tokens a step (vLLM: --max-num-batched-tokens).")
    ] = 8192,
    max_seqs: Annotated[
        int, typer.Option(min=1, help="The engine's limit of sequences a step (vLLM: --max-num-seqs).")
    ] = 256,
    model: Annotated[str | None, typer.Option(help="The model to ask for.")] = None,
    energy: Annotated[
        str | None, typer.Option(help="Where the energy is asked; the target if not given.")
    ] = None,
) -> None:
    """Measures batches of the shapes that a workload has most of, saving after each; stop and go on at
    will.
    """
    if energy == "none":
        raise BadInput("--energy none: a profile is of energy")
    said = probe(url, energy_url=energy, model=model)
    idle = (said.energy or {}).get("idle") or {}
    if said.energy is None or not isinstance(idle.get("watts"), (int, float)):
        raise BadInput(f"{url}: gives no idle power, which a profile needs")
    limits = [float(device.get("power_limit_watts") or 0.0) for device in said.target.devices]
    fresh = Profile(
        schema=PROFILE_SCHEMA,
        created_unix=time.time(),
        target=said.target,
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
        max_model_len=said.target.max_model_len,
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
    """The profile at `path`, if it is of the same endpoint and settings. Raises BadInput where it is not."""
    old = load_profile(path)
    for name, was, now in (
        ("model", old.target.model, fresh.target.model),
        ("engine", old.target.engine, fresh.target.engine),
        ("source of energy", old.target.energy_source, fresh.target.energy_source),
        ("--max-batched-tokens", old.max_batched_tokens, fresh.max_batched_tokens),
        ("--max-seqs", old.max_seqs, fresh.max_seqs),
    ):
        if was != now:
            raise BadInput(f"--out {path}: is a profile with another {name} ({was}, now {now})")
    return old


def _summary(current: Profile, prompt: Any, output: Any, out: Path) -> None:
    mass = covered_mass(prompt, output, {(s.prompt_tokens, s.output_tokens) for s in current.shapes})
    typer.echo(f"{len(current.shapes)} shapes; their bins hold {mass:.1%} of the workload's requests")
    cost = fit(current)
    fixed, prompt_token, attention, token, context = cost.joules
    word = " modelled" if current.modelled else ""
    typer.echo(
        f"a step{word}: {fixed:.3g} J + {prompt_token * 1e3:.3g} mJ a prompt token + {token * 1e3:.3g} "
        "mJ an output "
        f"token + {context * 1e6:.3g} µJ a context token + {attention * 1e9:.3g} nJ a pair of prompt tokens; "
        f"error on the shapes {cost.joules_error:.1%} of energy, {cost.seconds_error:.1%} of time"
    )
    typer.echo(f"profile: {out}")
