"""What runs of a study: which of its stages, how far it is, what it says, and what it waits for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from dashboards.analysis.tables import counted, duration
from studies import StudyRecord, StudyState
from studies.records.records import StageRecord
from studies.service.service_store import ServiceStore
from studies.service.submissions import RunState

# Kinds of stages whose figures count steps, each with the setting or figure of how many there are at most, and what
# they are.
_STEPS = {
    "search": ("trials", "trials"),
    "refine": ("refine_trials", "trials"),
    "tune": ("router_trials", "trials"),
    "distill": ("router_steps", "steps"),
    "compare": ("rows", "rows"),
}


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
    figures, step = last_figures.get("figures", {}), last_figures.get("step")
    most = config.get(setting, figures.get(setting))
    if last_figures.get("stage") != stage or not isinstance(step, int) or not isinstance(most, int):
        return known
    pace = figures.get("trials_per_s")
    is_timed = unit == "trials" and isinstance(pace, (int, float)) and pace > 0
    left_s = max(0, most - step) / pace if is_timed else None
    return RunProgress(state, stage=stage, step=step, steps=most, unit=unit, left_s=left_s, **others)


@dataclass(frozen=True)
class QueuePlaces:
    """The queue of the runners."""

    waiting: Sequence[str]  # names, in the order in which they are taken
    has_runner: bool  # a runner lives

    @classmethod
    def of(cls, store: ServiceStore) -> QueuePlaces:
        """The queue as it is now."""
        return cls(store.queue.waiting(), any(runner.is_alive for runner in store.runners.all()))

    def place_of(self, name: str) -> dict[str, Any]:
        """What a study waits for, as attributes of its progress."""
        ahead = self.waiting.index(name) if name in self.waiting else None
        return {"ahead": ahead, "has_runner": self.has_runner}


def progress_of(
    store: ServiceStore, study: StudyRecord, state: RunState, stages: Sequence[StageRecord], last: Mapping[str, Any]
) -> RunProgress:
    """Progress of a study now.

    Args:
        store: Store of the study.
        study: The study.
        state: Its state, the queue included.
        stages: Stages that it has been through.
        last: Content of its last event with figures; empty for none.
    """
    if state.is_at_rest:
        return RunProgress(state)
    if state is RunState.QUEUED:
        return RunProgress(state, **QueuePlaces.of(store).place_of(study.name))
    running = next((one for one in reversed(stages) if one.state is StudyState.RUNNING), None)
    began, lines = (store.events.latest(study.name, (kind,)) for kind in ("began", "log"))
    return run_progress(
        state,
        None if running is None else running.name,
        study.config,
        last,
        foreseen=tuple(began[-1].content.get("stages", ())) if began else (),
        began_at=None if running is None else running.began_at,
        line=str(lines[-1].content.get("text", "")) if lines else "",
    )
