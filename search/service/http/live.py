"""Live progress as server-sent events, read from SQL: any server can follow any runner."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Depends, Header
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from search.service.auth.access import current_access
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

LastEventId = Annotated[str | None, Header(max_length=100, description="Id of the last event received.")]


@dataclass(frozen=True)
class _News:
    state: RunState
    progress: Mapping[str, Any]
    events: list[RunEvent]
    origin: str


def add_live(router: APIRouter, store: ServiceStore, settings: ServiceSettings) -> None:
    """Adds the operation to a router."""
    # Streams by token; those of browsers count for the token that began their session.
    n_streams: Counter[str | None] = Counter()

    async def place() -> AsyncIterator[None]:
        """Counts a stream until it ends."""
        access = current_access()
        token = None if access is None else access.name
        if token is not None and n_streams[token] >= settings.max_streams_each:
            detail = f"{settings.max_streams_each} streams follow studies with this token: end one, or try again later."
            raise HTTPException(429, detail, {"Retry-After": "10"})
        if n_streams.total() >= settings.max_streams:
            detail = "Too many follow studies at the moment: try again later."
            raise HTTPException(503, detail, {"Retry-After": "10"})
        n_streams[token] += 1
        try:
            yield
        finally:
            n_streams[token] -= 1
            # Names of tokens that are gone are not kept.
            if not n_streams[token]:
                del n_streams[token]

    async def known(name: StudyName, last_event_id: LastEventId = None) -> None:
        """Answers 204 if there is nothing to send, while the status can still be chosen."""
        news = await run_in_threadpool(_news, store, name, last_event_id)
        if last_event_id is not None and news.state.is_at_rest and not news.events:
            raise HTTPException(204)

    @router.get(
        "/studies/{name}/events",
        response_class=EventSourceResponse,
        # A stream is counted before anything is awaited, or simultaneous requests would exceed the limit.
        dependencies=[Depends(place), Depends(known)],
        responses={
            **described(401, 404, 422, 429, 503),
            200: {"description": "Server-sent events, whose `data` is JSON."},
            204: {"description": "No event since then, and none to come until the study is resumed."},
        },
        tags=["results"],
    )
    async def watch(name: StudyName, last_event_id: LastEventId = None) -> AsyncIterator[ServerSentEvent]:
        """Follow a study: events `began`, `stage`, `figures`, `measured`, `log`, `ended` of its runs, each with an id.

        A `progress` event gives the state of the study whenever it changes. `rest` is the last event: nothing more
        happens until the study is resumed.
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
                # The client reconnects and continues after its last event.
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
    """State and new events of a study; all of its events if the last id is another study's."""
    # In this order: a study's state is final before its submission ends, and events in between are sent next time.
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
