"""Readings become energy over time: sampling, one monotonic counter per device, its timeline, idle power."""
