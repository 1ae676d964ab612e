"""Damage against sparsity, measured."""
