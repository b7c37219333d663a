"""A calibration: what a grid of request shapes costs on an endpoint, batch by batch, in one JSON file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from wattload.errors import InputError
from wattload.rundir.directory import read_model
from wattload.rundir.result import TargetInfo
from wattmeter.whole_file import write_atomically

PROFILE_SCHEMA = "wattload.profile/1"
I64 = npt.NDArray[np.int64]


class ShapeCost(BaseModel):
    """`batch` requests of one shape sent at once, `waves` times.

    `above_idle_joules` and `seconds`: of one wave, from the sending to the last token; `ttft_seconds`
    (median) and `tpot_seconds` (median; null for one token).
    """

    model_config = ConfigDict(extra="allow")

    prompt_tokens: int = Field(ge=1)
    output_tokens: int = Field(ge=1)
    batch: int = Field(ge=1)
    waves: int = Field(ge=1)
    seconds: float = Field(gt=0)
    above_idle_joules: float
    ttft_seconds: float
    tpot_seconds: float | None = None
    flags: list[str] = Field(default_factory=list)

    @property
    def key(self) -> tuple[int, int, int]:
        return (self.prompt_tokens, self.output_tokens, self.batch)


class Profile(BaseModel):
    """A calibration: what an endpoint's batches cost, and the limits of its engine.

    `idle_watts` and `power_limit_watts` are of all metered devices together. `max_batched_tokens`,
    `max_seqs`: the engine's limits a step, as the user gave them or as vLLM has them by default.
    """

    model_config = ConfigDict(populate_by_name=True, extra="allow")

    schema_: str = Field(PROFILE_SCHEMA, alias="schema")
    created_unix: float
    target: TargetInfo
    idle_watts: float
    power_limit_watts: float | None = None
    max_batched_tokens: int = 8192
    max_seqs: int = 256
    workload: str | None = None
    shapes: list[ShapeCost] = Field(default_factory=list)

    @property
    def modelled(self) -> bool:
        return "modelled" in (self.target.energy_source or "")

    def batch_joules(self, shape: ShapeCost) -> float:
        """E_batch: everything that the devices took while one batch of the shape ran, idle included."""
        return shape.above_idle_joules + self.idle_watts * shape.seconds

    def save(self, path: Path) -> None:
        write_atomically(path, self.model_dump_json(by_alias=True, indent=1))


def load_profile(path: Path) -> Profile:
    """Raises InputError naming the file where it is none, cut short, of another schema, or has no shapes."""
    profile = read_model(path, PROFILE_SCHEMA, Profile)
    if not profile.shapes:
        raise InputError(f"{path}: has no measured shapes")
    return profile


def power_of_two_bin(tokens: npt.ArrayLike, *, least: int = 8, most: int = 1 << 20) -> I64:
    """Lengths rounded up to powers of two (arXiv 2504.17674), within [least, most]."""
    values = np.maximum(np.asarray(tokens, np.float64), 1.0)
    result: I64 = np.clip(2 ** np.ceil(np.log2(values)), least, most).astype(np.int64)
    return result


def workload_bins(prompt: npt.ArrayLike, output: npt.ArrayLike) -> dict[tuple[int, int], int]:
    """How many requests fall into each (prompt, output) bin."""
    pairs = np.column_stack((power_of_two_bin(prompt, least=16), power_of_two_bin(output, least=8)))
    bins, counts = np.unique(pairs, axis=0, return_counts=True)
    return {(int(i), int(o)): int(n) for (i, o), n in zip(bins, counts, strict=True)}
