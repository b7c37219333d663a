"""Which of several models each request is for: drawn by weights, with the schedule's seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from wattload.client.model_mix import ModelMix
from wattload.schedule.table import Schedule


def with_models(schedule: Schedule, mix: ModelMix, by_tag: Mapping[str, ModelMix], *, seed: int) -> Schedule:
    """`schedule` with a model for each request; the turns of a session have one.

    `mix`: of the tenants that are not in `by_tag`. The same schedule where all requests are for one model.
    """
    names = list(dict.fromkeys(name for one in (mix, *by_tag.values()) for name, _ in one))
    if len(names) < 2:
        return schedule
    rng = np.random.default_rng([seed, 17])
    in_session = schedule.session >= 0
    # One number for each session, and one for each request that belongs to none.
    _, session = np.unique(np.where(in_session, schedule.session, -1), return_inverse=True)
    of_sessions, of_requests = rng.random(int(session.max(initial=0)) + 1), rng.random(len(schedule))
    drawn = np.where(in_session, of_sessions[session], of_requests)
    model = np.zeros(len(schedule), np.int16)
    for place, tag in enumerate(schedule.tags):
        chosen = by_tag.get(tag, mix)
        weights = np.array([weight for _, weight in chosen])
        # The last edge may be a little below 1, and nothing lies beyond it.
        edges = np.cumsum(weights / weights.sum())[:-1]
        numbers = np.array([names.index(name) for name, _ in chosen], np.int16)
        rows = schedule.tag == place
        model[rows] = numbers[np.searchsorted(edges, drawn[rows], side="right")]
    return replace(schedule, model=model, models=tuple(names))
