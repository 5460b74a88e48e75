"""Plain values that a store gives back: studies, stages, routers, examples."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from studies.records.labels import NO_LABELS, Labels
from studies.records.study_facts import Origin, StudyFacts


class StudyState(enum.StrEnum):
    """State of a study; `FAILED` and `STOPPED` ones can be resumed."""

    CREATED = "created"
    RUNNING = "running"
    STOPPED = "stopped"
    FAILED = "failed"
    FINISHED = "finished"


@dataclass(frozen=True)
class LeftAside:
    """The trials of a study that no search began or ended: other programs did, through Optuna.

    Searches count them nowhere, and leave them as they are.
    """

    ended: int = 0  # completed, pruned and failed ones
    running: int = 0  # those that some program may be evaluating
    waiting: int = 0  # those in Optuna's queue

    @property
    def total(self) -> int:
        """All of them."""
        return self.ended + self.running + self.waiting

    def __str__(self) -> str:
        """A sentence; empty if there are none."""
        if not self.total:
            return ""
        parts = {"ended": self.ended, "running": self.running, "waiting": self.waiting}
        counts = ", ".join(f"{n} {state}" for state, n in parts.items() if n)
        trials = "trial" if self.total == 1 else "trials"
        return f"Left aside: {self.total} {trials} that other programs put into the study through Optuna ({counts})."


@dataclass(frozen=True)
class StageRecord:
    """The last run of one stage of a study's pipeline."""

    name: str  # "search", "tune", "distill-1", "refine-1", "measure", "select", "test", "time", "export" or "report"
    state: StudyState
    began_at: datetime  # UTC
    ended_at: datetime | None  # UTC; None while it runs, and if its process was killed

    @property
    def seconds(self) -> float | None:
        """Duration; None if it has not ended."""
        return None if self.ended_at is None else (self.ended_at - self.began_at).total_seconds()


@dataclass(frozen=True)
class ProposerState:
    """State that a proposer keeps in a study between runs."""

    proposer: str  # its name, which trials are labelled with
    state: Mapping[str, Any]  # plain values, as JSON knows them
    updated_at: datetime  # when that was written, UTC


@dataclass(frozen=True)
class RouterRun:
    """One distilled router.

    Attributes:
        trial: Number of the trial whose schedule it was distilled on, or the chosen one of several.
        schedule: That schedule.
        config: Hyperparameters of the distillation; `stage` says which stage trained it, `kind` what it reads,
            `schedules` how many schedules it was trained on, `static_kl` the held-out KL of the static router.
        curves: One list per curve over the steps: "step", "loss", "guide", "sparsity", "distill", "held_out_step",
            "held_out_kl".
        sha256: Hash of the weights.
        seconds: Training time.
        created_at: When it was stored, UTC.
        number: Place among the study's routers, from 0; set where it is read.
    """

    trial: int
    schedule: tuple[float, ...]
    config: Mapping[str, Any]
    curves: Mapping[str, list[float]]
    sha256: str
    seconds: float
    created_at: datetime
    number: int = 0

    @property
    def title(self) -> str:
        """The stage that trained it, and what it reads, as far as they are known."""
        stage, kind = self.config.get("stage", f"router {self.number}"), self.config.get("kind")
        return f"{stage} ({kind})" if kind else str(stage)

    @property
    def held_out_kl(self) -> float:
        """The lowest held-out KL of the training, which is that of the router that was kept; infinite without any."""
        return min(self.curves.get("held_out_kl", []), default=math.inf)

    @property
    def static_kl(self) -> float:
        """Held-out KL of the static router's decisions."""
        return float(self.config["static_kl"])

    @property
    def beats_static(self) -> bool:
        """True if training found a router with a lower held-out KL than the static one's decisions had."""
        return self.held_out_kl < self.static_kl


@dataclass(frozen=True)
class RoutedPrompt:
    """A prompt of the test set, and how far the selected model carries each of its tokens."""

    tokens: tuple[str, ...]  # the prompt's tokens as text, white space included: joined they are the prompt
    blocks_run: tuple[int, ...]  # for each token, how many blocks it runs
    n_blocks: int  # blocks of the model
    expected: str  # the right answer
    dense: str  # answer of the dense model: its likeliest choice, or its greedy continuation
    pruned: str  # answer of the selected model
    dense_right: bool | None = None  # whether the dense model's choice is the right one; None without choices
    pruned_right: bool | None = None  # whether that of the selected model is


@dataclass(frozen=True)
class GroupAccuracy:
    """Accuracy on the test items of one group, such as those with the answer three statements back."""

    group: str  # the group's name, as the data says it
    n_items: int
    accuracy: Mapping[str, float]  # by variant ("dense", "uniform", "static", "dynamic", "refined")
    interval: Mapping[str, tuple[float, float]]  # 95 % Wilson intervals of those, by variant


@dataclass(frozen=True)
class Disagreement:
    """A test item on which the selected model and the dense one differ."""

    prompt: str
    expected: str  # the right answer
    dense: str  # answer of the dense model
    pruned: str  # answer of the selected model
    kl: float  # KL(dense || pruned) per token of the right answer, nats
    group: str | None = None  # its group; None if the data has none


@dataclass(frozen=True)
class ReportExamples:
    """Examples and completions that a report shows, from the test set.

    Attributes:
        prompts: A few prompts with the blocks that each token runs.
        groups: Accuracy by group, in the groups' natural order; empty if the data has no groups or no choices.
        disagreements: The worst items, highest KL first: those answered differently before all others.
        n_disagreements: Items answered differently.
        n_lost: Those that the dense model has right and the selected one wrong.
        n_won: The other way round.
        n_items: Items looked at.
        kl_ratios: For each other row with a name but dense, the 95 % bootstrap interval of the selected row's KL as a
            share of its KL; items are drawn for both together.
    """

    prompts: tuple[RoutedPrompt, ...] = ()
    groups: tuple[GroupAccuracy, ...] = ()
    disagreements: tuple[Disagreement, ...] = ()
    n_disagreements: int = 0
    n_lost: int = 0
    n_won: int = 0
    n_items: int = 0
    kl_ratios: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class StudySummary:
    """One line of the list of studies."""

    name: str
    state: StudyState
    n_trials: int
    created_at: datetime
    model: str
    data: str
    labels: Labels = NO_LABELS


@dataclass(frozen=True)
class StudyRecord:
    """A study without its trials.

    Attributes:
        name: Unique in its database.
        state: State of its last run.
        created_at: When it was created, UTC.
        config: Configuration, enough to resume it.
        objectives: Names of the objectives, in the order of `Trial.values`.
        facts: Facts beside its trials.
        chosen_trial: Number of the trial that was chosen from the front, once it was: after a search the one to distil
            a router for, after selection the one to export.
        labels: What people say of it, and its sweep.
    """

    name: str
    state: StudyState
    created_at: datetime
    config: Mapping[str, Any]
    objectives: tuple[str, ...]
    facts: StudyFacts
    chosen_trial: int | None
    labels: Labels = NO_LABELS

    @property
    def origin(self) -> Origin:
        """The study as the origin of files."""
        return Origin(self.name, self.created_at.isoformat())
