"""Sends the load of a plan, from this process alone or from several."""

from __future__ import annotations

from wattload.load.follow import Interrupt, follow
from wattload.load.plan import LoadPlan, LoadResult


def run_load(plan: LoadPlan) -> LoadResult:
    """Sends the whole schedule and returns when every planned request has its row.

    Raises RunInvalid where the load cannot begin, KeyboardInterrupt at the second signal to end it.
    """
    with Interrupt() as interrupt:
        # What one process does not need is not imported: a sender is to stay small.
        if plan.load.processes > 1 or plan.load.master:
            from wattload.load.distributed.master import distributed_load

            with distributed_load(plan, interrupt) as load:
                return follow(load, plan, interrupt)
        from wattload.load.local import local_load

        with local_load(plan) as local:
            return follow(local, plan, interrupt)
