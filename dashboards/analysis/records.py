"""Data of a report, and which of its measurements belong together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from dashboards.analysis.trials import Found
from studies import Measurement, RouterRun, StudyRecord, StudyState, Trial, front
from studies.analysis.origin import is_searched, schedule_origin
from studies.analysis.retention import Retention, chance_level, chance_sentence, retention_of
from studies.analysis.shortened_prompt import AgainstShortenedPrompt
from studies.analysis.verdict import NextStep, against_shortened_prompt, next_steps, selected_point, verdict_of
from studies.records.compared import Compared
from studies.records.generation_speed import GenerationSpeed
from studies.records.objectives import COSTS, DEFAULT_COST, Objective, objective
from studies.records.records import LeftAside, ReportExamples, StageRecord
from studies.records.study_facts import SelectionRecord
from studies.records.trial_columns import columns_of
from studies.sql.times import local_text

# One row each, in this order, before the candidates of the front.
NAMED_VARIANTS = ("dense", "uniform", "static", "dynamic", "refined")


def measured_cost(m: Measurement, cost: str) -> float | None:
    """The measured value of a cost, by the name of the objective; None if there is none."""
    return getattr(m, cost) if cost in COSTS else None


# What a row of each name is, as long as nothing else is known of it.
VARIANT_TITLES: Mapping[str, str] = {
    "dense": "dense model",
    "uniform": "uniform sparsity, static router",
    "static": "static: searched schedule, static router",
    "dynamic": "dynamic: that schedule, distilled router",
    "refined": "refined: searched again with the router",
    "candidate": "candidates of the front",
}


def row_title(m: Measurement, proposer: str | None) -> str:
    """Names a measurement for legends; a schedule that no search found, as far as known, is not called searched."""
    title = VARIANT_TITLES.get(m.variant, m.variant)
    if m.variant not in ("static", "refined") or is_searched(m.schedule, proposer):
        return title
    decides = "static router" if m.router is None else "distilled router"
    return f"{m.variant}: {schedule_origin(m.schedule, proposer)}, {decides}"


@dataclass(frozen=True)
class ReportData:
    """Everything that a report is made from.

    Attributes:
        study: The study.
        trials: Its trials.
        measurements: Its measurements, if any. Only those of the split "test" are results: the ones that
            the selection saw stay out of every table and figure.
        router_runs: Its routers, oldest first.
        examples: Single prompts and items of the test set; None before they were looked at.
        stages: The stages that its pipeline has been through.
        left_aside: Numbers of trials that are not among these, since other programs added them.
        compared: What other methods came to, the oldest first.
    """

    study: StudyRecord
    trials: Sequence[Trial]
    measurements: Sequence[Measurement]
    router_runs: Sequence[RouterRun]
    examples: ReportExamples | None = None
    stages: Sequence[StageRecord] = ()
    left_aside: LeftAside = field(default_factory=LeftAside)
    compared: Sequence[Compared] = ()

    @property
    def state(self) -> str:
        """State of the study; a report that is written as its last stage does not count as one that runs."""
        running = [stage.name for stage in self.stages if stage.state is StudyState.RUNNING]
        return StudyState.FINISHED.value if running == ["report"] else self.study.state.value

    @property
    def labels(self) -> list[str]:
        """The study's sweep, tags and note, a line each, as far as it has them."""
        own = self.study.labels
        lines = [f"Of sweep {own.sweep}" if own.sweep else "", f"Tags: {', '.join(own.tags)}" if own.tags else ""]
        return [line for line in (*lines, own.note) if line]

    @property
    def cost(self) -> Objective:
        """Cost that the study trades KL against."""
        return objective(self.study.objectives[1] if len(self.study.objectives) > 1 else DEFAULT_COST)

    @property
    def prefill(self) -> str:
        """The prefill that costs are of, for a sentence; empty where it is not known."""
        shape = self.study.facts.timed_input
        return "" if shape is None else f" of a prefill of {shape.batch} × {shape.length} tokens{self._within}"

    @property
    def _within(self) -> str:
        """Uncertainty of predicted latency, where it is the cost that the study trades KL against, and known."""
        profile = self.study.facts.latency_profile
        known = None if profile is None or self.cost.name != "latency_ms" else profile.uncertainty
        return "" if known is None else f", predicted to within {known:.1%}"

    @property
    def selection(self) -> SelectionRecord | None:
        """The point that was selected and why; None before that."""
        return self.study.facts.selection

    @property
    def speeds(self) -> Sequence[GenerationSpeed]:
        """Times of generation, end to end; empty before it was timed."""
        return self.study.facts.generation_speeds

    @property
    def chosen_trial(self) -> int | None:
        """Number of the trial that was selected, or else chosen from the front."""
        return self.study.chosen_trial if self.selection is None else self.selection.trial

    @cached_property
    def found(self) -> Found:
        """The trials as figures draw them."""
        return Found.of_study(self.study, columns_of(self.trials, len(self.study.objectives)))

    @cached_property
    def shown_schedules(self) -> list[Trial]:
        """The front, and the selected trial: the best on other items need not be on the front of the search's."""
        points = front(self.trials)
        if any(t.number == self.chosen_trial for t in points):
            return points
        return points + [t for t in self.trials if t.number == self.chosen_trial]

    @cached_property
    def results(self) -> list[Measurement]:
        """Measurements on test items: dense, uniform, static, dynamic and refined, then candidates by KL.

        A candidate that has a row under another name is left out.
        """
        tested = [m for m in self.measurements if m.split == "test"]
        named = [m for variant in NAMED_VARIANTS for m in tested if m.variant == variant]
        shown = {(m.trial, m.router) for m in named}
        others = [m for m in tested if m.variant not in NAMED_VARIANTS and (m.trial, m.router) not in shown]
        return named + sorted(others, key=lambda m: m.kl)

    @property
    def selected(self) -> Measurement | None:
        """The selected point as measured on test items: what a user would run."""
        return selected_point(self.results, self.selection)

    @cached_property
    def _proposers(self) -> Mapping[int, str]:
        return {trial.number: trial.proposer for trial in self.trials}

    def origin(self, m: Measurement) -> str:
        """The trial whose schedule a row has, and where that comes from; empty where it is of no trial."""
        if m.trial is None:
            return ""
        proposer = self._proposers.get(m.trial)
        if not is_searched(m.schedule, proposer):
            return f"trial {m.trial}: {schedule_origin(m.schedule, proposer)}"
        return f"trial {m.trial}" if proposer is None else f"trial {m.trial} by {proposer}"

    @cached_property
    def titles(self) -> Mapping[str, str]:
        """For each row with a name what it is, for legends: a row that shows no search's find is not called one."""
        titles = dict(VARIANT_TITLES)
        for variant in titles:
            m = self.measured(variant)
            if m is not None and m.trial is not None:
                titles[variant] = row_title(m, self._proposers.get(m.trial))
        return titles

    @property
    def title(self) -> str:
        """Title of the report: model, data, name of the study and the day on which it began."""
        config = self.study.config
        day = local_text(self.study.created_at).split(" ")[0]
        subject = f"{_named(config, 'model')} on {_named(config, 'data')}"
        # A name is written as it is, a word begins as sentences do.
        subject = f"D{subject[1:]}" if config.get("model") == "demo" else subject
        return f"{subject}: study {self.study.name}, {day}"

    @cached_property
    def against_shortened_prompt(self) -> AgainstShortenedPrompt | None:
        """The selected point beside a shortened prompt, or before it was measured the chosen trial; None if unknown."""
        return against_shortened_prompt(self.study, self.selected, self.results, self.examples, self.trials)

    @property
    def verdict(self) -> str:
        """Verdict on the study, in a sentence; empty where nothing is known yet."""
        dense = self.measured("dense")
        return verdict_of(self.study.facts, self.selected, dense, self.against_shortened_prompt, self.examples)

    @property
    def next_steps(self) -> list[NextStep]:
        """Commands to run next."""
        is_finished = self.state == StudyState.FINISHED.value
        wanted = self.study.config.get("trials", len(self.trials))
        return next_steps(self.study, is_finished, self.selected, self.against_shortened_prompt, wanted)

    @property
    def chance(self) -> float | None:
        """Accuracy of guessing on the test items; None where the data has no choices."""
        return chance_level(self.study.facts, "test")

    @property
    def only_guesses(self) -> str:
        """The sentence on a dense model that answers no better than chance; empty where it does."""
        return chance_sentence(self.measured("dense"), self.chance)

    def retention(self, m: Measurement) -> Retention | None:
        """Retention of a row; item by item for the selected one, as far as items are known."""
        seen = self.examples if m is self.selected else None
        return retention_of(m, self.measured("dense"), seen, self.chance)

    def measured(self, variant: str) -> Measurement | None:
        """The test measurement of a variant, the first of several candidates."""
        return next((m for m in self.results if m.variant == variant), None)

    def measured_point(self, trial: Trial) -> Measurement | None:
        """The test measurement of a trial with the router that it was evaluated with."""
        return next((m for m in self.results if (m.trial, m.router) == (trial.number, trial.router)), None)

    def router_pair(self) -> tuple[Measurement, Measurement] | None:
        """The dynamic measurement and one of the same schedule with the static router; None without such a pair."""
        dynamic = self.measured("dynamic")
        if dynamic is None or dynamic.trial is None:
            return None
        statics = (m for m in self.results if m.variant in ("static", "candidate") and m.router is None)
        static = next((m for m in statics if m.trial == dynamic.trial), None)
        return None if static is None else (dynamic, static)

    def router_name(self, m: Measurement) -> str:
        """Names the router of a measurement."""
        if m.router is None:
            return "none" if m.variant == "dense" else "static"
        run = next((run for run in self.router_runs if run.number == m.router), None)
        return f"router {m.router}" if run is None else run.title


def _named(config: Mapping[str, Any], what: str) -> str:
    """A model or data set by its own name: the last part of a path or of an id."""
    said = str(config.get(what, "?"))
    return f"demo {what}" if said == "demo" else said.rstrip("/").rsplit("/", 1)[-1]
