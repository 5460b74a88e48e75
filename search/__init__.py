"""What to try next, and where to run it."""
