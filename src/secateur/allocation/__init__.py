"""Thresholds, knapsack, certificates."""
