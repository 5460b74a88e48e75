"""Progress of a run: views and trackers."""
