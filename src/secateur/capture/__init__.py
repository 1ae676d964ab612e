"""Runs of a model in which every use of a weight as a linear map is seen, whatever module or function made it."""
