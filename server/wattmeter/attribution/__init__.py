"""Whose joules they are: dividing an interval over requests, and Shapley values of tenants."""
