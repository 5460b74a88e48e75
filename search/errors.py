"""Errors of the search: each says what was wrong, what was expected, and what to do."""


class SearchError(Exception):
    """Base of every error that this package raises on purpose."""


class ConfigError(SearchError, ValueError):
    """A run was asked for something outside its range."""


class UnfinishedError(ConfigError):
    """Something was asked for that only a study that has finished has."""


class BusyError(SearchError):
    """Something was asked for that is done one at a time, while another is being done."""


class DeadlineError(SearchError):
    """Something took longer than it may."""


class EvaluationError(SearchError):
    """A worker could not evaluate a schedule, or could not start."""
