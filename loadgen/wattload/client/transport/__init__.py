"""From bytes on a socket to server-sent events: the read path below an HTTP client library.

Why not a library: docs/explanation/load-generator.md has the measurements.
"""
