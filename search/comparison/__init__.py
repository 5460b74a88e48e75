"""Other methods on the same axes: the same model, items, clock and tests as a study's own schedules."""
