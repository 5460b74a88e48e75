"""Parameters of paths and queries."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated

from fastapi import Depends, Path, Query, Request
from starlette.exceptions import HTTPException

from search.config.study_name import MAX_NAME_LENGTH, normalised
from studies import StudyNotFoundError

# Largest integer of SQL.
MAX_NUMBER = 2**31 - 1


def _known_name(
    name: Annotated[str, Path(min_length=1, max_length=MAX_NAME_LENGTH, description="Name of the study.")],
) -> str:
    # What no name can hold never reaches the database.
    if not name.isprintable():
        raise StudyNotFoundError("No study can be called so.")
    return normalised(name)


async def known_query(request: Request) -> None:
    """Refuses parameters that an operation does not have, which would be ignored without a word."""
    operation = request.app.openapi()["paths"][request.scope["route"].path][request.method.lower()]
    known = [one["name"] for one in operation.get("parameters", ()) if one["in"] == "query"]
    for name in request.query_params:
        if name not in known:
            close = get_close_matches(name, known, 1, cutoff=0.7)
            hint = f"did you mean {close[0]}?" if close else f"expected {' or '.join(known) or 'none'}."
            raise HTTPException(422, f"The query parameter {name!r} is unknown: {hint}")


StudyName = Annotated[str, Depends(_known_name)]
Number = Annotated[int, Path(ge=0, le=MAX_NUMBER, description="Number of the trial.")]
After = Annotated[int, Query(ge=-1, le=MAX_NUMBER, description="Number of the last item received.")]
Limit = Annotated[int, Query(ge=1, le=1000, description="Most items to return.")]
Offset = Annotated[int, Query(ge=0, le=MAX_NUMBER, description="Number of items to skip.")]
