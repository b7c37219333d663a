"""Images of requests: how many a trace tells of, what is refused, and what is said of those that are left
out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from wattload.client.api import Api
from wattload.errors import InputError
from wattload.schedule.frame import parse_image
from wattload.schedule.table import Schedule
from wattload.traces.describe import ImageStatistics
from wattload.traces.trace import Trace


def check_images(image: str | None, api: Api, traces: Sequence[Trace], *, server_history: bool) -> None:
    """Refuses images that an endpoint has no place for, and traces with images whose size nothing says.

    `image`: the setting as it was given. `server_history`: later turns hold the server's own responses.
    Raises InputError.
    """
    name = f"`api` {api.route.name}"
    if image is not None:
        if parse_image(image) is not None and not api.chat:
            raise InputError("image", f"{image}: {name} takes no images; chat, responses and messages do")
        if parse_image(image) is not None and server_history:
            raise InputError("image", f"{image}: cannot be put into sessions with `history` server")
        return
    for trace in traces:
        found = ImageStatistics.of(trace)
        if found is None:
            continue
        have = f"{found.requests:,} of {len(trace):,} requests of {trace.name} have images"
        if not api.chat:
            raise InputError(
                f"{name} takes no images, and {have}; chat, responses and messages do, and `image` none sends"
                " the text alone"
            )
        raise InputError(
            "image",
            f": {have}, whose size it does not tell: give WIDTHxHEIGHT, or none to send the text alone",
        )


def planned_images(schedule: Schedule) -> int | None:
    """Images of all requests as planned; None where the run has none."""
    told, others = 0, len(schedule)
    if schedule.images is not None:
        known = schedule.images[schedule.images >= 0]
        told, others = int(known.sum(dtype=np.int64)), len(schedule) - len(known)
    elif schedule.frame.image is None:
        return None
    return told + (others if schedule.frame.image is not None else 0)


def noting_images(schedule: Schedule) -> Schedule:
    """`schedule` with a note of the images that its trace has and that are not sent."""
    images = schedule.images
    if schedule.frame.image is not None or images is None or not (images > 0).any():
        return schedule
    note = (
        f"{int((images > 0).sum()):,} of {len(schedule):,} requests have images in the trace"
        f" ({planned_images(schedule):,} in all); --image none sends their text alone"
    )
    return replace(schedule, notes=(*schedule.notes, note))
