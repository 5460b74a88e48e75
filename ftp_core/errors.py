"""Errors of the core; texts say what was wrong, what was expected, and what to do."""


class CoreError(Exception):
    """Base of every error that this package raises on purpose."""


class ScheduleError(CoreError, ValueError):
    """A schedule holds a value outside its range, or has the wrong number of blocks."""


class DataError(CoreError, ValueError):
    """A data file cannot be read, is empty, or a line fits no known form."""


class ModelError(CoreError, ValueError):
    """A model cannot be found, loaded, or run with skipped tokens."""
