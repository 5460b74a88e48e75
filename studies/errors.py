"""Errors of the memory: each says what was wrong, what was expected, and what to do."""


class StudiesError(Exception):
    """Base of every error that this package raises on purpose."""


class StorageError(StudiesError):
    """The database cannot be opened, read or written."""


class StudyExistsError(StudiesError):
    """A study of this name is there already."""


class StudyNotFoundError(StudiesError):
    """There is no study of this name."""


class StudyBusyError(StudiesError):
    """Another process works on the study."""


class LeaseLostError(StudiesError):
    """Another process has taken the study over."""


class ForeignResultsError(StudiesError):
    """A folder holds files that another study, or something else, has written."""
