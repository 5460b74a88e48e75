"""Runners, which work on submitted studies."""
