"""The same test inside Locust's own command: options, one user a worker, an Energy tab."""

from wattload.locust_ui.plugin import ReplayShape, ReplayUser, install

__all__ = ["ReplayShape", "ReplayUser", "install"]
