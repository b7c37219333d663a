"""Named profiles: how long a step takes on a GPU with a model, and how many joules it costs."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from wattmeter.energy_model.step_model import StepModel
from wattserve.sim.device import PowerLimit, Timing
from wattserve.sim.scheduler import Limits

SCHEMA = "wattserve.profile/1"
_FOLDER = "profiles"


class ProfileError(ValueError):
    """A profile that does not exist or cannot be used; the message is one sentence."""


@dataclass(frozen=True, slots=True)
class Profile:
    """One GPU with one model. `fit` says what it was fitted on and how far it is from the recordings.

    `idle_watts` is drawn with the model loaded and nothing running. A step's length is `timing`'s, its joules
    above idle are `step_model`'s, lowered with the clock where the power limit holds it down.
    `launches_ahead`: the engine decides on a step when the one before begins (vLLM's asynchronous
    scheduling), so a request that comes in between waits for one step more. `frontend_seconds` is what the
    server spends on a request outside the engine: it delays each arrival.
    """

    name: str
    device_name: str
    model: str
    vocab_size: int
    idle_watts: float
    power_limit_watts: float
    limits: Limits
    step_model: StepModel
    timing: Timing
    launches_ahead: bool = True
    frontend_seconds: float = 0.0
    fit: dict[str, Any] = field(default_factory=dict)

    def device(self) -> PowerLimit:
        """A device of this kind, with the state of its clock."""
        return PowerLimit(self.timing, self.step_model)

    def limited(self, watts: float) -> Profile:
        """The same board held at `watts`, as `nvidia-smi -pl` does. Raises ProfileError where it cannot be.

        The ceiling on the watts above idle moves by as much as the board's limit does. How far below the
        profile's own limit that is true of a real board has not been measured.
        """
        ceiling = self.timing.limit_watts + watts - self.power_limit_watts
        if watts > self.power_limit_watts or ceiling <= 0:
            lowest = self.power_limit_watts - self.timing.limit_watts
            raise ProfileError(
                f"--power-limit-watts {watts:g}: {self.name} can be held between {lowest:.0f} and"
                f" {self.power_limit_watts:.0f} W"
            )
        timing = replace(self.timing, limit_watts=ceiling)
        return replace(self, power_limit_watts=watts, timing=timing)

    def as_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "name": self.name,
            "device_name": self.device_name,
            "model": self.model,
            "vocab_size": self.vocab_size,
            "idle_watts": self.idle_watts,
            "power_limit_watts": self.power_limit_watts,
            "limits": asdict(self.limits),
            "launches_ahead": self.launches_ahead,
            "frontend_seconds": self.frontend_seconds,
            "step_model": self.step_model.as_json(),
            "timing": asdict(self.timing),
            "fit": self.fit,
        }


def known_profiles() -> list[str]:
    """Names of the profiles that come with wattserve."""
    folder = resources.files(__package__).joinpath(_FOLDER)
    return sorted(item.name.removesuffix(".json") for item in folder.iterdir() if item.name.endswith(".json"))


def load_profile(name_or_path: str) -> Profile:
    """A profile by its name, or from a JSON file. Raises ProfileError with one sentence."""
    if name_or_path in known_profiles():
        text = resources.files(__package__).joinpath(_FOLDER, f"{name_or_path}.json").read_text("utf-8")
    else:
        path = Path(name_or_path)
        if not path.is_file():
            raise ProfileError(
                f"--profile {name_or_path}: no such profile or file; there are {', '.join(known_profiles())}"
            )
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ProfileError(f"--profile {name_or_path}: cannot be read: {error}") from None
    try:
        return parse_profile(json.loads(text))
    except json.JSONDecodeError as error:
        raise ProfileError(
            f"--profile {name_or_path}: line {error.lineno} is not JSON: {error.msg}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ProfileError(f"--profile {name_or_path}: {error}") from None


def parse_profile(data: Any) -> Profile:
    """A profile from what `as_json` gave. Raises ValueError naming the field that is wrong."""
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise ValueError(f"not a {SCHEMA} object")
    for key in ("name", "device_name", "model"):
        if not isinstance(data.get(key), str) or not data[key]:
            raise ValueError(f"{key} is missing")
    for key in ("idle_watts", "power_limit_watts", "frontend_seconds"):
        value = data.get(key, 0.0 if key == "frontend_seconds" else None)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
            or value < 0
        ):
            raise ValueError(f"{key} must be a number of at least 0, not {value!r}")
    if not isinstance(data.get("vocab_size"), int) or data["vocab_size"] < 2:
        raise ValueError(f"vocab_size must be a whole number of at least 2, not {data.get('vocab_size')!r}")
    try:
        limits = Limits(**data["limits"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"limits: {error}") from None
    if "step_model" not in data:
        raise ValueError("step_model is missing")
    launches_ahead = data.get("launches_ahead", True)
    if not isinstance(launches_ahead, bool):
        raise ValueError(f"launches_ahead must be true or false, not {launches_ahead!r}")
    return Profile(
        name=data["name"],
        device_name=data["device_name"],
        model=data["model"],
        vocab_size=data["vocab_size"],
        idle_watts=float(data["idle_watts"]),
        power_limit_watts=float(data["power_limit_watts"]),
        limits=limits,
        step_model=StepModel.from_json(data["step_model"]),
        timing=Timing.from_json(data.get("timing")),
        launches_ahead=launches_ahead,
        frontend_seconds=float(data.get("frontend_seconds", 0.0)),
        fit=data.get("fit", {}),
    )
