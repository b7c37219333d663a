"""Measuring a grid of request shapes on an endpoint."""
