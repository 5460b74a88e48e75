"""What runs of a study: which of its stages, how far it is, what it says, and what it waits for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from dash import html

from dashboards.analysis.tables import counted, duration
from dashboards.app.parts import attributes
from studies.service.submissions import RunState

# Kinds of stages whose figures count steps, each with the setting of how many there are at most, and what they are.
_STEPS = {
    "search": ("trials", "trials"),
    "refine": ("refine_trials", "trials"),
    "tune": ("router_trials", "trials"),
    "distill": ("router_steps", "steps"),
}
NO_RUNNER = "No runner is there: studies wait until one is started with `ftp-search runner`."


@dataclass(frozen=True)
class RunProgress:
    """Progress of the run of a study that is not at rest."""

    state: RunState
    foreseen: Sequence[str] = ()  # the run's stages, in order; empty if unknown
    stage: str | None = None  # the stage that runs
    began_at: datetime | None = None  # when that began, UTC
    step: int | None = None  # steps of it that are done; None if unknown
    steps: int | None = None  # most steps that it takes; None if unknown
    unit: str = "steps"  # what steps are
    left_s: float | None = None  # seconds until then at the present pace; None if unknown
    line: str = ""  # last line of the log
    ahead: int | None = None  # studies that a runner takes before; None if it does not wait
    has_runner: bool = True  # a runner lives

    @property
    def place(self) -> str:
        """The stage that runs, and which of how many it is, as far as known; empty if none does."""
        if self.stage is None:
            return ""
        if self.stage not in self.foreseen:
            return f"stage {self.stage}"
        return f"stage {self.foreseen.index(self.stage) + 1} of {len(self.foreseen)}: {self.stage}"

    @property
    def counts(self) -> str:
        """Steps done and time left, as far as known."""
        if self.step is None or not self.steps:
            return ""
        left = "" if self.left_s is None else f", at most {duration(self.left_s)} left"
        return f"{self.step} of at most {self.steps} {self.unit}{left}"

    @property
    def queue(self) -> str:
        """The place in the queue; empty if it does not wait."""
        if self.ahead is None:
            return ""
        return f"{counted(self.ahead, 'study', 'studies')} ahead in the queue" if self.ahead else "next in the queue"


def run_progress(
    state: RunState,
    stage: str | None,
    config: Mapping[str, Any],
    last_figures: Mapping[str, Any],
    **others: Any,
) -> RunProgress:
    """Progress by what a run said last.

    Args:
        state: State of the study.
        stage: Name of the stage that runs; None for none.
        config: Configuration of the study.
        last_figures: Content of its last event with figures.
        **others: Further attributes of the progress.
    """
    known = RunProgress(state, stage=stage, **others)
    setting, unit = _STEPS.get((stage or "").partition("-")[0], ("", ""))
    most, step = config.get(setting), last_figures.get("step")
    if last_figures.get("stage") != stage or not isinstance(step, int) or not isinstance(most, int):
        return known
    pace = last_figures.get("figures", {}).get("trials_per_s")
    is_timed = unit == "trials" and isinstance(pace, (int, float)) and pace > 0
    left_s = max(0, most - step) / pace if is_timed else None
    return RunProgress(state, stage=stage, step=step, steps=most, unit=unit, left_s=left_s, **others)


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
