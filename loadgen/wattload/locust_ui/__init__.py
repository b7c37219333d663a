"""The same test inside Locust's own command: options, one user a worker, an Energy tab."""

from wattload.load import use_system_allocator

use_system_allocator()

from wattload.locust_ui.plugin import ReplayShape, ReplayUser, install  # noqa: E402 - Arrow is imported here

__all__ = ["ReplayShape", "ReplayUser", "install"]
