"""What addresses and queries may say."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Path, Query

from search.config.study_name import MAX_NAME_BYTES, check_study_name
from search.errors import ConfigError
from studies import StudyNotFoundError

# SQL's whole numbers.
MAX_NUMBER = 2**31 - 1


def _known_name(
    name: Annotated[str, Path(min_length=1, max_length=MAX_NAME_BYTES, description="Name of the study.")],
) -> str:
    try:
        check_study_name(name)
    except (ConfigError, UnicodeEncodeError):
        # No database shall see what no study can be called.
        raise StudyNotFoundError("No study can be called so.") from None
    return name


StudyName = Annotated[str, Depends(_known_name)]
Number = Annotated[int, Path(ge=0, le=MAX_NUMBER, description="Number of the trial.")]
After = Annotated[int, Query(ge=-1, le=MAX_NUMBER, description="Number of the last one that is known already.")]
Limit = Annotated[int, Query(ge=1, le=1000, description="Most to give.")]
Offset = Annotated[int, Query(ge=0, le=MAX_NUMBER, description="How many to pass over.")]
