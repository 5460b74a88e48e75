"""From a configuration to a pruned model and its report: stages, each of which continues where the study stands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from search.config.run_config import RunConfig
from search.errors import SearchError
from search.inputs.data import MAX_CONTINUATION, Workload, load_workload
from search.inputs.same_inputs import check_same
from search.pipeline.estimate import estimate_lines, estimate_run, planned_ablations
from search.pipeline.resume_settings import at_target
from search.progress.progress_view import ProgressView
from search.stages.final_test import (
    compare_selected,
    export_selected,
    measure_candidates,
    note_selection,
    select_candidate,
)
from search.stages.knee import choose_from_front, chosen_trial
from search.stages.open_study import OpenStudy
from search.stages.refine import distill_again, refine
from search.stages.refine_rounds import fresh_rounds
from search.stages.remeasure import renew_profile
from search.stages.search_schedules import Search, search_schedules, study_costs
from search.stages.stage_states import LAST_STAGES, Stages, all_stages
from search.stages.time_generation import check_lengths, time_selected
from studies import StudyStore, front
from studies.records.study_facts import LongCompletions, StudyFacts
from studies.store.lease import Lease

# Writes the report of the study into a folder; gives its files.
Report = Callable[[Path], Sequence[Path]]


class Pipeline:
    """The stages of one study, each of which continues where the study stands.

    They are `search`, then rounds of `distill-n` and `refine-n` while the front grows, with `tune` before the first,
    then `measure`, `select`, `test`, `time`, `export` and `report`. One that has finished is not run again: for a
    search to go on, let it be forgotten (`Runs.forget_stages`).

    Args:
        store: Database of the study, which must exist.
        name: Its name.
        lease: Right to work on it.
        view: View that draws progress.
        config: Its configuration.
        workload: Model and data, if they are loaded already.

    Attributes:
        config: Configuration of the study.

    Raises:
        SearchError: Model or data are not those that the study began with, or prompts and new tokens to time do not fit
            into the model's context.
        CoreError: One of them cannot be used.
    """

    def __init__(
        self,
        store: StudyStore,
        name: str,
        lease: Lease,
        view: ProgressView,
        config: RunConfig,
        workload: Workload | None = None,
    ) -> None:
        self.config = config
        workload = load_with_progress(self.config, view) if workload is None else workload
        self._study = OpenStudy(store, name, lease, self.config, workload, view)
        with view.stage("Comparing model and data with the study's", 1) as stage:
            self._check_workload()
            check_lengths(self.config, workload, store.studies.get(name).facts.timed_input)
            stage.advance()
        self._stages = Stages(self._study)

    def run(self, report: Report, remeasure: bool = False) -> None:
        """Runs every stage that is still missing.

        Args:
            report: Callback that writes the report, as the last stage, also if no other one is missing.
            remeasure: Whether the latency profile is measured again first, and trials are predicted anew.

        Raises:
            SearchError: No trial keeps the constraints by the new profile; the study is left as it was.
        """
        with self._stages.running(self._foreseen()):
            if remeasure:
                renew_profile(self._study)
            self._search(self._foreseen())
            refine(self._study, self._stages)
            self._once("measure", measure_candidates)
            self._once("select", select_candidate)
            self._end(self._first_router(), report)

    def search_only(self) -> None:
        """Runs the search stage alone."""
        with self._stages.running(["search"]):
            self._search(["search"])

    def distill_only(
        self, router_steps: int | None, seed: int | None, target_sparsity: float | None, report: Report
    ) -> None:
        """Distils a new router for the chosen schedule and compares it on the test examples.

        It is chosen if it beats the static one.

        Args:
            router_steps: Steps of its training; None for the study's own.
            seed: Seed of its training; None for the study's own.
            target_sparsity: Choose the front's best schedule at this overall sparsity first; see `at_target`.
            report: Callback that writes the report.

        Raises:
            SearchError: No schedule is chosen yet, or the chosen one skips nothing.
        """
        study = self._study
        chosen = chosen_trial(study)
        if target_sparsity is not None:
            chosen = at_target(front(study.store.trials.of(study.name)), target_sparsity, study.name)
        if not any(chosen.schedule):
            raise SearchError(
                f"The chosen schedule of study {study.name!r} skips nothing, so there is nothing to route: "
                "choose another with --target-sparsity."
            )
        with self._stages.running(["distill", "test", "time", "export", "report"]):
            # What was measured on validation examples, and chosen by that, stays.
            self._stages.forget(("test", "time", "export", "report"))
            router_run = distill_again(study, self._stages, chosen, router_steps, seed)
            note_selection(study, "distill", "Its schedule was chosen to distil a new router for.")
            self._end(router_run, report)

    def _foreseen(self) -> list[str]:
        """The stages that are to come, if no round ends the refinement early."""
        return all_stages(self.config, self._study.store.studies.get(self._study.name).facts.first_round)

    def _check_workload(self) -> None:
        """Compare model and data with what the study began with, or record them if it begins now."""
        store, name, workload = self._study.store, self._study.name, self._study.workload
        found = {"model": workload.model.fingerprint(), "data": workload.data_fingerprint}
        facts = store.studies.get(name).facts
        check_same(store.studies.get(name), found)
        keep_first = workload.model.skipping.keep_first
        if facts.model_fingerprint is not None and facts.keep_first != keep_first:
            # What a system turn is made of hangs on the tokenizer's chat template, too.
            raise SearchError(
                f"Study {name!r} began with {facts.keep_first} protected tokens, and its system turn has "
                f"{keep_first} now: its trials would not compare with new ones. Restore the tokenizer and its chat "
                "template, or start a new study."
            )
        found_out = StudyFacts(
            model_fingerprint=found["model"],
            data_fingerprint=found["data"],
            keep_first=keep_first,
            n_blocks=workload.model.skipping.n_blocks,
            unprotected_beginning=workload.unprotected_beginning,
            left_out=workload.left_out,
            shared_boundaries=workload.shared_boundaries,
            long_completions=LongCompletions(MAX_CONTINUATION, workload.long_completions),
            split_sizes=workload.split_sizes,
            chance=workload.chance,
            fewer_items=workload.fewer_than_asked(self.config.search_items),
        )
        store.studies.update_facts(name, found_out)

    def _search(self, foreseen: Sequence[str]) -> None:
        """Evaluate schedules with the static router until the budget is used.

        Args:
            foreseen: The stages that are to come, this one among them.
        """
        study, store, name = self._study, self._study.store, self._study.name
        if self._stages.has_finished("search"):
            return
        self._estimate(foreseen)
        if store.studies.get(name).facts.rounds:
            # The front that they refined is about to change.
            store.studies.update_facts(name, fresh_rounds)
        self._stages.forget(LAST_STAGES)
        with self._stages.stage("search"):
            if sum(trial.round == 0 for trial in store.trials.each(name)) < self.config.trials:
                search = Search(0, self.config.trials, first_trial=store.trials.n_begun(name))
                search_schedules(study, study_costs(study), search)
            choose_from_front(study)

    def _estimate(self, foreseen: Sequence[str]) -> None:
        """Say, and keep, what a study that begins now will take."""
        study = self._study
        if study.store.studies.get(study.name).facts.estimate is not None or study.store.trials.n_begun(study.name):
            return
        expected = estimate_run(study.config, study.workload, study.store, foreseen, study.view)
        # What is left out is said here, and not again as the search begins.
        ablations = planned_ablations(study.config, study.workload).record()
        study.store.studies.update_facts(study.name, StudyFacts(estimate=expected, ablations=ablations))
        study.view.tell(estimate_lines(expected))

    def _first_router(self) -> int | None:
        """Number of the router that was distilled on what the first search found; None if there is none."""
        facts = self._study.store.studies.get(self._study.name).facts
        one = facts.round_of(facts.first_round)
        return None if one is None else one.router_run

    def _end(self, router_run: int | None, report: Report) -> None:
        """Everything behind the selection."""
        self._once("test", lambda study: compare_selected(study, router_run))
        self._once("time", time_selected)
        if self.config.export != "none":
            self._once("export", export_selected)
        with self._stages.stage("report"), self._study.view.stage("Writing the report", 1) as stage:
            report(self.config.folder(self._study.name))
            stage.advance()

    def _once(self, stage: str, work: Callable[[OpenStudy], None]) -> None:
        """Run one of the last stages, unless it has finished; those behind it, which rest on it, are due again."""
        if not self._stages.has_finished(stage):
            self._stages.forget(LAST_STAGES[LAST_STAGES.index(stage) :])
            with self._stages.stage(stage):
                work(self._study)


def load_with_progress(config: RunConfig, view: ProgressView) -> Workload:
    """The model and data of a configuration, as `load_workload` reads them.

    Raises:
        CoreError: One of them cannot be used.
    """
    with view.stage("Loading model and data", 1) as stage:
        workload = load_workload(config.model, config.data, config.seed, config.sizes, config.keep_first)
        stage.advance()
    if fewer := workload.fewer_than_asked(config.search_items):
        view.console.print(fewer, highlight=False)
    for reason, n in workload.left_out.items():
        view.console.print(f"Left out {_examples(n)} {reason}.")
    if workload.shared_boundaries:
        view.console.print(
            f"In {_examples(workload.shared_boundaries)} one token spans the end of the prompt and the beginning of "
            "what follows: it counts as what follows."
        )
    if workload.unprotected_beginning:
        view.console.print(workload.unprotected_beginning)
    n_long = workload.long_completions
    if n_long:
        view.console.print(f"Of completions the first {MAX_CONTINUATION} tokens count: {n_long} have as many or more.")
    return workload


def _examples(n: int) -> str:
    return f"{n} example{'s' if n != 1 else ''}"
