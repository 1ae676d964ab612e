"""Schedules, retraining, distillation."""
