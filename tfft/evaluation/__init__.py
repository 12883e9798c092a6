"""Metrics of a split, their confidence intervals, and baselines."""
