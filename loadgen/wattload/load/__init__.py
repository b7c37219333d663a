"""How requests are sent: the dispatcher keeps scheduled times; loads are local or distributed."""

import os
from collections.abc import Mapping


def use_system_allocator() -> None:
    """Makes Arrow use the system's allocator. To be called before Arrow is first imported.

    Arrow's own allocator keeps 16 MB more resident in a process that sends requests, and reads and writes no
    faster there.
    """
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")


def without_locust_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without the variables that Locust's own command reads.

    They are no settings of wattload. Kubernetes makes some of its own accord: LOCUST_WEB_PORT is an address
    in every pod of a namespace that has a service of the name locust-web, and Locust cannot parse it.
    """
    return {name: value for name, value in environment.items() if not name.startswith("LOCUST_")}
