"""A finished run handed to other tools: an OpenTelemetry collector, MLflow, Weights & Biases.

Everything here starts from a run directory whose joules are final, so nothing of it is in the load's path,
and what could not be exported can be exported again. Each tool's client is imported when it is used.
"""
