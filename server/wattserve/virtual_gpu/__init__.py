"""A GPU that is not there: continuous batching in real time, with step times and joules from a profile."""
