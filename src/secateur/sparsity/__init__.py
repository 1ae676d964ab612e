"""Zeros without removal: which weights of a matrix go, what the others become, and how zeros stay zero."""
