"""Sentences for run.json about what the responses were like, where that qualifies figures."""

from __future__ import annotations

import numpy as np

from wattload.client.api import APIS
from wattload.client.record import LEAST_SECONDS_PER_TOKEN
from wattload.rundir.requests import GapHistogram
from wattload.rundir.run import RunData

_MOST_QUOTES = 3
_LEAST_GAPS = 20


def natural_lengths(data: RunData) -> list[str]:
    """What to compare where responses ended by themselves; empty where their lengths were forced, or came as
    planned.
    """
    config = data.capture.config
    free = config.get("natural_lengths") is not None or config.get("exact_output") is False
    if not (free or APIS[config.get("api") or "completions"].lengths_note):
        return []
    requests, known = data.requests, data.done & ~np.isnan(data.requests.output)
    got, planned = requests.output[known], requests.output_planned[known]
    others = int((got != planned).sum())
    if not others:
        return []
    return [
        f"responses ended by themselves, after {got.mean():.4g} tokens on average ({planned.mean():.4g}"
        f" planned; {others:,} of {len(got):,} responses have another length than planned): energy per"
        " request is of these lengths; compare energy per output token with other runs"
    ]


def images_left_out(data: RunData) -> list[str]:
    """What to know where the requests of a trace have images that were not sent; empty where all were."""
    requests = data.requests
    left_out = (requests.images_planned > 0) & (requests.images == 0)
    if not left_out.any():
        return []
    sent = int((~np.isnan(requests.images)).sum())
    return [
        f"{int(left_out.sum())} of {sent} requests have images in the trace"
        f" ({int(requests.images_planned[left_out].sum())} in all), which were left out: their text was sent"
        " alone (--image none)"
    ]


def stream_notes(data: RunData, gaps: GapHistogram) -> list[str]:
    """Tokens that came together, counts that are missing, and what was passed over, quoted.

    `gaps` are those between the chunks of the completed requests of the window.
    """
    requests, done = data.requests, data.done
    notes = []
    count, together = int(done.sum()), int((requests.together & done).sum())
    if together:
        notes.append(
            f"{together} of {count} completed responses came all at once, as through a gateway that buffers:"
            " they have no TPOT, and their TTFT is the time of the whole response"
        )
    elif gaps.n >= _LEAST_GAPS and (share := gaps.share_below(LEAST_SECONDS_PER_TOKEN)) > 0.5:
        notes.append(
            f"{share:.0%} of the chunks came together with the one before,"
            " as through a gateway that buffers: TTFT and ITL are those of its bundles"
        )
    if not np.isnan(requests.replica).all():
        shares = np.bincount(requests.replica[~np.isnan(requests.replica)].astype(int))
        notes.append(f"requests were shared out among endpoints: {', '.join(map(str, shares))}")
    notes += images_left_out(data)
    notes += natural_lengths(data)
    counted = requests.output if data.generates else requests.prompt
    uncounted = int((np.isnan(counted) & done).sum())
    if uncounted:
        without = "they have no TPOT, and" if data.generates else "they"
        notes.append(
            f"{uncounted} of {count} completed responses gave no count of their tokens: {without}"
            " are in no figure per token"
        )
    if requests.unread:
        quotes = sorted(requests.unread, key=lambda text: (-requests.unread[text], text))[:_MOST_QUOTES]
        notes.append(
            f"{sum(requests.unread.values())} responses held what was not understood and was passed over,"
            f" as {'; '.join(quotes)}"
        )
    return notes
