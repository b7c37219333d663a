"""The meters of all hosts whose GPUs an engine uses, as an API process speaks with them: as one.

Each meter divides its own host's joules among the requests; a request's joules are the sum. Where one meter
does not answer there is no sum, since that of the others would be too small, and it is named. What is asked
about windows, devices and metrics the meter of this host answers alone, with the flag `other_hosts`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from wattmeter.schema import PROVISIONAL, UNKNOWN, RequestEnergy, SchemaError, no_energy, requests_from_json
from wattserve.meter.client import MeterClient, MeterGoneError

REQUESTS = "/energy/requests"


class SeveralMeters:
    """`own` is the connection to the meter of this host, `further` are those to others, by their names."""

    def __init__(self, own: MeterClient, further: dict[str, MeterClient]) -> None:
        self._own = own
        self._further = further
        self._all = [own, *further.values()]
        self._names = ["the meter of this host", *(f"the meter at {name}" for name in further)]

    def start(self) -> None:
        for client in self._all:
            client.start()

    def close(self) -> None:
        for client in self._all:
            client.close()

    def request_started(self, request_id: str, *, group: str = "") -> None:
        for client in self._all:
            client.request_started(request_id, group=group)

    def request_finished(
        self,
        request_id: str,
        *,
        output_tokens: int | None = None,
        prompt_tokens: int | None = None,
        aborted: bool = False,
        refused: bool = False,
        group: str | None = None,
    ) -> None:
        for client in self._all:
            client.request_finished(
                request_id,
                output_tokens=output_tokens,
                prompt_tokens=prompt_tokens,
                aborted=aborted,
                refused=refused,
                group=group,
            )

    async def usage_fields(
        self, request_id: str, *, output_tokens: int | None = None, prompt_tokens: int | None = None
    ) -> dict[str, Any]:
        """`energy` of a request that has ended, over all hosts, and `energy_reason` where that is null."""
        answers = await asyncio.gather(
            *(
                client.usage_fields(request_id, output_tokens=output_tokens, prompt_tokens=prompt_tokens)
                for client in self._all
            )
        )
        try:
            parts = [RequestEnergy.from_usage(request_id, answer) for answer in answers]
        except SchemaError as error:
            return no_energy(f"the answer of a meter cannot be understood: {error}")
        return self._sum(parts).to_usage()

    async def http(
        self, method: str, path: str, query: str, body: bytes = b"", *, tenant: str = ""
    ) -> tuple[int, str, bytes]:
        """(status, content type, body) of a request to the meters' routes. Raises MeterGoneError."""
        question = (method, path, query, body)
        if path.rstrip("/") != REQUESTS and not path.startswith(f"{REQUESTS}/"):
            return await self._own.http(*question, tenant=tenant)
        answers = await asyncio.gather(
            *(client.http(*question, tenant=tenant) for client in self._all), return_exceptions=True
        )
        first, *others = answers
        if isinstance(first, BaseException):
            raise first
        if first[0] != 200:
            return first  # a question that no meter takes, or a request that is not known
        try:
            # Of ten thousand requests this takes a while, in which nothing else would be served.
            content = await asyncio.to_thread(self._summed, first[2], others)
        except (ValueError, TypeError, KeyError) as error:
            raise MeterGoneError(f"the answer of a meter cannot be understood: {error}") from None
        return first[0], first[1], content

    def _summed(self, own: bytes, others: Sequence[tuple[int, str, bytes] | BaseException]) -> bytes:
        """The answer of this host's meter about one request, or several, with the others' joules in it."""
        first = json.loads(own)
        single = "requests" not in first
        mine = requests_from_json({"requests": [first]} if single else first)
        parts = [[energy] for energy in mine]
        for answer in others:
            for known, found in zip(parts, _of_answer(answer, mine), strict=True):
                known.append(found)
        sums = [self._sum(known).to_json() for known in parts]
        return json.dumps(sums[0] if single else {"requests": sums}).encode()

    def _sum(self, parts: Sequence[RequestEnergy]) -> RequestEnergy:
        """One request's parts, in the order of the meters."""
        if parts[0].status == UNKNOWN:
            return parts[0]
        found = RequestEnergy.over_hosts([part for part in parts if part.status != UNKNOWN])
        for name, part in zip(self._names, parts, strict=True):
            if part.joules is None:
                return found.without_joules(f"{name}: {part.reason or 'it does not know this request'}")
        kinds = sorted({part.source for part in parts})
        if len(kinds) > 1:
            return found.without_joules(
                f"the hosts' joules are {' and '.join(kinds)}, which are not to be added"
            )
        return found


def _of_answer(
    answer: tuple[int, str, bytes] | BaseException, asked: Sequence[RequestEnergy]
) -> Sequence[RequestEnergy]:
    """What a further meter's answer says of each request that was asked for."""
    if isinstance(answer, MeterGoneError):
        return [RequestEnergy(energy.id, PROVISIONAL, reason=str(answer)) for energy in asked]
    if isinstance(answer, BaseException):
        raise answer
    status, _, body = answer
    if status == 404:
        return [RequestEnergy(energy.id, UNKNOWN) for energy in asked]
    if status != 200:
        return [
            RequestEnergy(energy.id, PROVISIONAL, reason=f"it answered with status {status}")
            for energy in asked
        ]
    content = json.loads(body)
    return requests_from_json(content if "requests" in content else {"requests": [content]})
