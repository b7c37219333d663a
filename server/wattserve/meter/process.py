"""A meter process: from its options to its exit status.

    python -m wattserve.meter.process '{"meter": "nvml", "socket": "/tmp/meter.sock"}'

is what a server starts as its child; a person starts the same with `wattserve meter`.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wattmeter.standard_streams import say

if TYPE_CHECKING:
    from wattserve.http.keys import Keys, TenantFrom

# Exit statuses: what cannot work, and what another meter does already.
REFUSED = 2
ANOTHER_IS_THERE = 3
# Not 9400 (NVIDIA's DCGM exporter), 8000 and 8001 (vLLM and what is beside it).
DEFAULT_PORT = 8790


@dataclass(frozen=True, slots=True)
class MeterOptions:
    """What a meter can be told; see the flags of `wattserve meter`. `child`: it is a server's own, and ends
    with its standard input, as with `ends_with_input`."""

    meter: str = "nvml"
    devices: str | None = None
    socket: str | None = None
    upstream: str | None = None
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    idle_watts: float | None = None
    step_model: str | None = None
    record: str | None = None
    selftest_seconds: float | None = None
    selftest_beside: bool = False
    child: bool = False
    ends_with_input: bool = False
    flag: str = "--meter"
    api_keys: tuple[str, ...] = ()
    tenant_from: TenantFrom | None = None
    components: tuple[str, ...] = ()
    calibration: str | None = None

    def as_json(self) -> str:
        """For the command line of a child, which everybody on the host can read, and so without keys."""
        return json.dumps({name: value for name, value in asdict(self).items() if name != "api_keys"})

    def keys(self) -> Keys:
        """What opens its routes over HTTP. A server's own meter answers through the server, which asks for
        its own keys: its port opens to nobody.
        """
        from wattserve.http.keys import Keys

        return Keys.closed() if self.child else Keys.given(self.api_keys, tenant_from=self.tenant_from)


class OptionsError(ValueError):
    """Options that cannot work: one sentence that names the flag."""


def run(options: MeterOptions) -> int:
    """Serves until SIGINT or SIGTERM. Returns the exit status. Raises OptionsError."""
    import zmq

    from wattmeter.energy_model.step_model import StepModel
    from wattmeter.meters import MeterUnavailableError
    from wattmeter.sensor_gain import load_gains
    from wattserve.http.server import ListenError, listening_socket, serve
    from wattserve.meter.app import MeterApp, state_file
    from wattserve.meter.components.components import Components
    from wattserve.meter.engines import Node
    from wattserve.meter_spec import MeterSpec
    from wattserve.protocol.address import SocketInUseError, address_of

    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.INFO)
    for noisy in ("httpx", "httpcore"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        address = None if options.socket is None else address_of(options.socket)
        spec = MeterSpec.parse(options.meter, options.devices, flag=options.flag)
        model = None
        if options.step_model is not None:
            model = StepModel.from_json(Path(options.step_model).read_text())
        node = Node(
            spec,
            idle_watts=options.idle_watts,
            step_model=model,
            record=None if options.record is None else Path(options.record),
            state=state_file(address),
        )
        gains = {}
        if options.calibration is not None:
            known = load_gains(Path(options.calibration))
            gains = {d.id: known[d.id] for d in node.meter.devices if d.id in known}
            if not gains:
                listed = ", ".join(device.id for device in node.meter.devices)
                raise OptionsError(f"--calibration {options.calibration}: has none of {listed}")
        app = MeterApp(
            node,
            address=address,
            upstream=options.upstream,
            selftest_seconds=options.selftest_seconds,
            selftest_beside=options.selftest_beside,
            keys=options.keys(),
            components=Components(options.components) if options.components else None,
            gains=gains,
        )
        listener = listening_socket(options.host, options.port)
    except SocketInUseError as error:
        if options.child:
            return ANOTHER_IS_THERE
        raise OptionsError(f"--socket: {error}") from None
    except zmq.ZMQError as error:
        raise OptionsError(f"--socket {options.socket}: {error}") from None
    except OSError as error:
        raise OptionsError(f"{error.filename or options.socket}: {error.strerror}") from None
    except (MeterUnavailableError, ListenError, ValueError) as error:
        raise OptionsError(str(error)) from None
    if options.child or options.ends_with_input:
        threading.Thread(target=_end_with_input, name="wattserve-parent", daemon=True).start()
    names = ", ".join(device.name for device in node.meter.devices)
    parts = [f"{node.source}: {names}"]
    parts += [f"steps at {address}"] if address is not None else []
    parts += [f"upstream {options.upstream}"] if options.upstream else []
    return serve(app.app, listener, name="wattserve meter", announce=f" ({'; '.join(parts)})")


def _end_with_input() -> None:
    """Whoever started this process has ended: so does this one, in order."""
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def main(arguments: list[str]) -> int:
    """One argument: the options as a JSON object."""
    # The terminal's interrupt goes to the whole group; the meter ends after the server that started it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return run(MeterOptions(**json.loads(arguments[0])))
    except OptionsError as error:
        say(f"wattserve meter: {error}", error=True)
        return REFUSED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
