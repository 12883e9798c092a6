"""Metrics of a split, their intervals, and the baselines beside them."""
