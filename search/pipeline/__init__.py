"""Pipelines: created, checked, estimated and run, stage by stage."""
