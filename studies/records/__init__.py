"""The values that are remembered: studies, trials, measurements."""
