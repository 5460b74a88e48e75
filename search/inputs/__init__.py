"""Model, data and latency profile of a run."""
