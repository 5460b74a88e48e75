"""What runs of a study, as pages show it."""

from __future__ import annotations

from typing import Any

from dash import html

from dashboards.analysis.run_progress import RunProgress
from dashboards.app.parts import attributes

NO_RUNNER = "No runner is there: studies wait until one is started with `ftp-search runner`."


def run_view(now: RunProgress) -> list[Any]:
    """The progress of a run for its study's page; nothing if it is at rest."""
    if now.state.is_at_rest:
        return []
    shown: list[Any] = []
    if now.queue:
        shown.append(html.P(f"Waits for a runner: {now.queue}.", className="place"))
        shown += [] if now.has_runner else [html.P(NO_RUNNER, className="alert", role="status")]
    if now.stage is not None:
        first = now.place[0].upper() + now.place[1:]
        shown.append(html.P([first, *elapsed(now)], className="place"))
        shown += [_stages(now)] if now.stage in now.foreseen else []
        shown += [html.Div([bar(now), html.Small(now.counts)], className="steps")] if now.counts else []
    if now.line and not now.queue:
        shown.append(html.P(html.Code(now.line), className="line"))
    return [html.Section(shown, className="run", **attributes(aria_label="What runs"))] if shown else []


def bar(now: RunProgress) -> html.Progress:
    """The steps of the stage that runs, as a bar."""
    share = min(1.0, (now.step or 0) / (now.steps or 1))
    return html.Progress(value=f"{share:.3f}", max="1", **attributes(aria_label=now.counts))


def elapsed(now: RunProgress) -> list[Any]:
    """The time since the stage began, which the browser counts on."""
    if now.began_at is None:
        return []
    return [", for ", html.Span(className="since", **attributes(data_since=now.began_at.isoformat()))]


def _stages(now: RunProgress) -> html.Ol:
    at = now.foreseen.index(now.stage or "")
    places = ("done" if place < at else "now" if place == at else "to-come" for place in range(len(now.foreseen)))
    return html.Ol(
        [
            html.Li(name, className=place, **(attributes(aria_current="step") if place == "now" else {}))
            for name, place in zip(now.foreseen, places, strict=True)
        ],
        className="stages",
    )
