"""What every mode serves alike: energy in responses, the /energy routes, Prometheus metrics."""
