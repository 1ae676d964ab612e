"""Scores of units, from statistics of one data pass."""
