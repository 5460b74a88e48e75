"""Optuna's storage interface on the same tables."""
