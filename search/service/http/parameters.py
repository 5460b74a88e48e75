"""Parameters of paths and queries."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Path, Query

from search.config.study_name import MAX_NAME_BYTES, check_study_name
from search.errors import ConfigError
from studies import StudyNotFoundError

# Largest integer of SQL.
MAX_NUMBER = 2**31 - 1


def _known_name(
    name: Annotated[str, Path(min_length=1, max_length=MAX_NAME_BYTES, description="Name of the study.")],
) -> str:
    try:
        check_study_name(name)
    except (ConfigError, UnicodeEncodeError):
        # Invalid names never reach the database.
        raise StudyNotFoundError("No study can be called so.") from None
    return name


StudyName = Annotated[str, Depends(_known_name)]
Number = Annotated[int, Path(ge=0, le=MAX_NUMBER, description="Number of the trial.")]
After = Annotated[int, Query(ge=-1, le=MAX_NUMBER, description="Number of the last item received.")]
Limit = Annotated[int, Query(ge=1, le=1000, description="Most items to return.")]
Offset = Annotated[int, Query(ge=0, le=MAX_NUMBER, description="Number of items to skip.")]
