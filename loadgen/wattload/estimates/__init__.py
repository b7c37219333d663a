"""Estimates of a workload's energy, to stand beside what was measured:

naive ones, a lower bound, binned, online.
"""
