"""Dense models by name, and their identity."""
