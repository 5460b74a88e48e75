"""Distillation of routers from the dense model's predictions."""
