"""Asking a meter: the energy client, remote sources, the poller, and probing an endpoint."""
