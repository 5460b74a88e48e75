"""Live progress: server-sent events, read from SQL, so that any server can tell of any worker's run."""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Header
from fastapi.responses import Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from search.service.http.parameters import StudyName
from search.service.rules.problems import described, problem
from search.service.rules.settings import ServiceSettings
from studies import StorageError, StudyNotFoundError
from studies.service.run_events import RunEvent
from studies.service.service_store import ServiceStore
from studies.service.submissions import RunState, run_state

_POLL_S = 0.5
_SILENCE_S = 15.0
_AT_ONCE = 200
_TEXT = {"type": "string"}
_EVENT_STREAM = {
    "text/event-stream": {
        "schema": {
            "type": "object",
            "description": "One event; `data` is JSON.",
            "properties": {"id": _TEXT, "event": _TEXT, "data": _TEXT},
            "required": ["event", "data"],
        }
    }
}
_EVENT_ID = re.compile(r"(\d{1,18})-(\d{1,9})")


@dataclass(frozen=True)
class _News:
    state: RunState
    progress: Mapping[str, Any]
    events: list[RunEvent]
    origin: str


class _Stream(StreamingResponse):
    """A stream of events.

    Args:
        told: The events.
        end: Called once it is over, however that comes: also if whoever asked is gone before it begins.
    """

    def __init__(self, told: AsyncIterator[str], end: Callable[[], None]) -> None:
        # Proxies shall not collect it.
        super().__init__(told, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
        self._end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._end()


def add_live(router: APIRouter, store: ServiceStore, settings: ServiceSettings) -> None:
    """Add the operation.

    Args:
        router: Gets it.
        store: Where studies live.
        settings: How the service is set up.
    """
    n_streams = 0

    def leave() -> None:
        nonlocal n_streams
        n_streams -= 1

    @router.get(
        "/studies/{name}/events",
        response_class=Response,
        responses={
            **described(401, 404, 422, 503),
            200: {
                "description": "Server-sent events.",
                "content": _EVENT_STREAM,
            },
            204: {"description": "Nothing has happened since, and nothing will until the study is resumed."},
        },
        tags=["results"],
    )
    async def watch(
        name: StudyName,
        last_event_id: Annotated[str | None, Header(max_length=100, description="Id of the last event seen.")] = None,
    ) -> Response:
        """Follow a study: events `began`, `stage`, `figures`, `measured`, `log`, `ended` of its runs, each with an id.

        Beside them, `progress` says where the study stands whenever that changes, and `rest` is the last event once
        nothing will happen until it is resumed.
        """
        nonlocal n_streams
        if n_streams >= settings.max_streams:
            return problem(503, "Too many follow studies at the moment: try again later.", {"Retry-After": "10"})
        # Before anything is waited for, else all that ask at the same moment would find a place.
        n_streams += 1
        try:
            news = await run_in_threadpool(_news, store, name, last_event_id)
        except BaseException:
            leave()
            raise
        if last_event_id is not None and news.state.is_at_rest and not news.events:
            leave()
            return Response(status_code=204)
        return _Stream(_told(store, name, last_event_id, settings.stream_s), leave)


async def _told(store: ServiceStore, name: str, last_event_id: str | None, most_s: float) -> AsyncIterator[str]:
    """What happens from now on, as text of server-sent events."""
    until = time.monotonic() + most_s
    progress: Mapping[str, Any] | None = None
    spoke_at = time.monotonic()
    while True:
        try:
            news = await run_in_threadpool(_news, store, name, last_event_id)
        except StudyNotFoundError:
            yield _event("deleted", {})
            return
        except StorageError:
            # Whoever listens asks again, from the last event that it saw.
            return
        for event in news.events:
            last_event_id = f"{news.origin}-{event.number}"
            yield _event(event.kind, {"at": event.at.isoformat(), **event.content}, last_event_id)
        if news.progress != progress:
            progress = news.progress
            yield _event("progress", progress)
            spoke_at = time.monotonic()
        if len(news.events) == _AT_ONCE:
            continue
        if news.state.is_at_rest:
            yield _event("rest", {"state": news.state})
            return
        now = time.monotonic()
        if now >= until:
            return
        if news.events:
            spoke_at = now
        elif now - spoke_at > _SILENCE_S:
            spoke_at = now
            yield ": still here\n\n"
        await anyio.sleep(min(_POLL_S, max(0.0, until - now)))


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


def _event(kind: str, content: Mapping[str, Any], event_id: str | None = None) -> str:
    # JSON escapes line breaks, which would end the event.
    lines = [] if event_id is None else [f"id: {event_id}"]
    return "\n".join([*lines, f"event: {kind}", f"data: {json.dumps(content)}", "", ""])
