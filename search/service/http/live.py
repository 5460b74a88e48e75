"""Live progress: server-sent events, read from SQL, so that any server can tell of any runner's run."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Depends, Header
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from search.service.http.parameters import StudyName
from search.service.rules.problems import described
from search.service.rules.settings import ServiceSettings
from studies import StorageError, StudyNotFoundError
from studies.service.run_events import RunEvent
from studies.service.service_store import ServiceStore
from studies.service.submissions import RunState, run_state

_POLL_S = 0.5
_AT_ONCE = 200
_EVENT_ID = re.compile(r"(\d{1,18})-(\d{1,9})")

LastEventId = Annotated[str | None, Header(max_length=100, description="Id of the last event seen.")]


@dataclass(frozen=True)
class _News:
    state: RunState
    progress: Mapping[str, Any]
    events: list[RunEvent]
    origin: str


def add_live(router: APIRouter, store: ServiceStore, settings: ServiceSettings) -> None:
    """Add the operation.

    Args:
        router: Gets it.
        store: Where studies live.
        settings: How the service is set up.
    """
    n_streams = 0

    async def place() -> AsyncIterator[None]:
        """Counts a stream until it is over, however that comes."""
        nonlocal n_streams
        if n_streams >= settings.max_streams:
            detail = "Too many follow studies at the moment: try again later."
            raise HTTPException(503, detail, {"Retry-After": "10"})
        n_streams += 1
        try:
            yield
        finally:
            n_streams -= 1

    async def known(name: StudyName, last_event_id: LastEventId = None) -> None:
        """Finds out whether there is anything to tell, while the status can still say so."""
        news = await run_in_threadpool(_news, store, name, last_event_id)
        if last_event_id is not None and news.state.is_at_rest and not news.events:
            raise HTTPException(204)

    @router.get(
        "/studies/{name}/events",
        response_class=EventSourceResponse,
        # A stream takes its place before anything is waited for, else all that ask at the same moment would find one.
        dependencies=[Depends(place), Depends(known)],
        responses={
            **described(401, 404, 422, 503),
            200: {"description": "Server-sent events, whose `data` is JSON."},
            204: {"description": "Nothing has happened since, and nothing will until the study is resumed."},
        },
        tags=["results"],
    )
    async def watch(name: StudyName, last_event_id: LastEventId = None) -> AsyncIterator[ServerSentEvent]:
        """Follow a study: events `began`, `stage`, `figures`, `measured`, `log`, `ended` of its runs, each with an id.

        Beside them, `progress` says where the study stands whenever that changes, and `rest` is the last event once
        nothing will happen until it is resumed.
        """
        until = time.monotonic() + settings.stream_s
        progress: Mapping[str, Any] | None = None
        while True:
            try:
                news = await run_in_threadpool(_news, store, name, last_event_id)
            except StudyNotFoundError:
                yield ServerSentEvent(event="deleted", data={})
                return
            except StorageError:
                # The listener asks again, from the last event that it saw.
                return
            for event in news.events:
                last_event_id = f"{news.origin}-{event.number}"
                data = {"at": event.at.isoformat(), **event.content}
                yield ServerSentEvent(event=event.kind, data=data, id=last_event_id)
            if news.progress != progress:
                progress = news.progress
                yield ServerSentEvent(event="progress", data=progress)
            if len(news.events) == _AT_ONCE:
                continue
            if news.state.is_at_rest:
                yield ServerSentEvent(event="rest", data={"state": news.state})
                return
            now = time.monotonic()
            if now >= until:
                return
            await anyio.sleep(min(_POLL_S, until - now))


def _news(store: ServiceStore, name: str, last_event_id: str | None) -> _News:
    """Where a study stands, and what happened behind an event; from the beginning, if that is another study's."""
    # What ends a submission also says where the study stands, which is read after it, then; and both before the events:
    # what happens in between is told the next time.
    submission = store.queue.get(name)
    study = store.studies.get(name)
    state = run_state(study.state, submission)
    origin = store.events.generation(name)
    found = _EVENT_ID.fullmatch(last_event_id or "")
    after = int(found[2]) if found is not None and found[1] == origin else 0
    running = [stage.name for stage in store.runs.stages(name) if stage.state.value == "running"]
    progress = {
        "state": state.value,
        "n_trials": store.trials.n_ended(name),
        "stage": running[-1] if running else None,
        "error": None if submission is None else submission.error,
    }
    return _News(state, progress, store.events.of(name, after, _AT_ONCE), origin)
