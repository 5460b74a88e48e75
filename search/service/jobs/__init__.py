"""Runners, which run submitted studies."""
