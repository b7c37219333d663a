"""The server of an arm while its cells are made: does it serve what it should, and is its GPU idle."""

from __future__ import annotations

import time

from wattload.config import RunConfig
from wattload.energy.client import EnergySource
from wattload.energy.probe import probe
from wattload.errors import InputError
from wattload.study.cooldown import Cooled, IdlePower
from wattload.study.program import ProgramFailed, Running
from wattload.study.spec import Arm, Study


class Server:
    """The server of an arm while its cells are made. `energy` is where its energy is asked, None: itself."""

    def __init__(
        self, arm: Arm, url: str, energy: str | None, programs: dict[str, Running], config: RunConfig
    ) -> None:
        self.arm, self.url, self.energy, self.programs = arm, url, energy, programs
        self._config = config
        self._source: EnergySource | None = None
        self._idle: IdlePower | None = None

    def check(self) -> None:
        """Sees that the server serves the arm's model, and that its meter answers, as a run does first.

        Raises ProgramFailed where not.
        """
        config = self._config
        endpoint = config.endpoint.endpoint()
        try:
            found = probe(
                self.url,
                energy_url=self.energy,
                model=config.endpoint.first_model,
                headers=dict(endpoint.headers),
                source_headers=config.endpoint.typed_headers(),
                all_devices=config.energy.energy_all_devices,
                tls=endpoint.tls,
            )
        except InputError as error:
            raise ProgramFailed(f"the server of {self.arm.name}: {error}") from error
        self._source = found.open_source()
        if self._source is not None:
            self._idle = IdlePower(self._source, found.clock.offset_seconds if found.clock else 0.0)

    def trouble(self, wait_seconds: float = 0.0) -> str | None:
        """How a program of the arm ended, None while all run; looks for so long."""
        deadline = time.monotonic() + wait_seconds
        while True:
            for program in self.programs.values():
                if program.ended:
                    return program.how_it_ended()
            if time.monotonic() >= deadline:
                return None
            time.sleep(0.05)

    def over(self) -> bool:
        return self.trouble() is not None

    def memory_trouble(self, logs: dict[str, int]) -> list[str]:
        """What the programs' logs say about memory, since they were of the given sizes."""
        found = []
        for name, program in self.programs.items():
            line = program.memory_trouble(logs.get(name, 0))
            if line is not None:
                found.append(f"the {name} ran out of memory: {line}")
        return found

    def cool_down(self, study: Study) -> Cooled | None:
        """Waits for the idle power; None where there is no energy to be asked."""
        if self._idle is None or not study.head.cooldown_seconds:
            return None
        return self._idle.wait(
            limit_seconds=study.head.cooldown_seconds, tolerance=study.head.cooldown_tolerance
        )

    def close(self) -> None:
        if self._source is not None:
            self._source.close()
            self._source = None
