"""From a configuration to a pruned model and its report: one table of stages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from search.comparison.compare import compare
from search.comparison.plan import ComparisonPlan
from search.config.run_config import RunConfig
from search.errors import SearchError
from search.inputs.data import Workload
from search.pipeline.estimate import note_estimate
from search.pipeline.resume_settings import at_target
from search.pipeline.workload import check_workload, fit_keys_of, give_substitutes_of, load_with_progress, note_workload
from search.progress.progress_view import ProgressView
from search.stages.final_test import (
    compare_selected,
    export_selected,
    measure_candidates,
    note_selection,
    select_candidate,
)
from search.stages.knee import chosen_trial
from search.stages.open_study import OpenStudy
from search.stages.refine import distill_again, refine
from search.stages.remeasure import renew_profile
from search.stages.search_schedules import first_search
from search.stages.solve import Solved, solve
from search.stages.stage_states import COMPARE, LAST_STAGES, Stages, all_stages
from search.stages.time_generation import time_selected
from studies import StudyStore, front
from studies.records.compared import Compared
from studies.records.confirmed import as_confirmed
from studies.records.target import Target
from studies.store.lease import Lease

# Writes the report of the study into a folder; gives its files.
Report = Callable[[Path], Sequence[Path]]
Work = Callable[[OpenStudy], object]


class Pipeline:
    """The stages of one study, each of which continues where the study stands.

    One that has finished is not run again: for a search to go on, let it be forgotten (`Runs.forget_stages`). Model and
    data are loaded unless they are given; a SearchError says that they are not those that the study began with.
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
        workload = load_with_progress(config, view) if workload is None else workload
        self._study = OpenStudy(store, name, lease, config, workload, view)
        with view.stage("Comparing model and data with the study's", 1) as stage:
            check_workload(self._study)
            note_workload(self._study)
            stage.advance()
        give_substitutes_of(self._study)
        fit_keys_of(self._study)
        self._stages = Stages(self._study)

    def run(self, report: Report, remeasure: bool = False) -> None:
        """Runs every stage that is still missing; the report is written in any case.

        With `remeasure`, the latency profile is measured again first, and trials are predicted anew (`renew_profile`).
        """
        foreseen = all_stages(self.config, self._study.facts.first_round)
        with self._stages.running(foreseen):
            if remeasure:
                renew_profile(self._study)
            self._estimate(foreseen)
            self._go_through(self._table(report))

    def search_only(self) -> None:
        """Runs the search stage alone."""
        with self._stages.running(["search"]):
            self._estimate(["search"])
            self._go_through(self._table(lambda _: [])[:1])

    def distill_only(self, router_steps: int | None, seed: int | None, target: Target | None, report: Report) -> None:
        """Distils a new router for the chosen schedule, and compares it on the test examples.

        It is chosen if it beats the static one. Steps and seed of the training are the study's own for None; with a
        target, the front's best schedule there is chosen first (`at_target`).

        Raises:
            SearchError: No schedule is chosen yet, or the chosen one skips nothing.
        """
        study = self._study
        chosen = chosen_trial(study)
        if target is not None:
            chosen = at_target(front(as_confirmed(study.trials())), target, study.name, study.facts.dense_costs)
        if not any(chosen.schedule):
            raise SearchError(
                f"The chosen schedule of study {study.name!r} skips nothing, so there is nothing to route: "
                "choose another with a target, such as --target-flops-saved."
            )
        # What was measured on validation examples, and chosen by that, stays.
        behind = LAST_STAGES[LAST_STAGES.index("test") :]
        with self._stages.running(["distill", *behind]):
            self._stages.forget(behind)
            router_run = distill_again(study, self._stages, chosen, router_steps, seed)
            note_selection(study, "distill", "Its schedule was chosen to distil a new router for.")
            self._go_through(row for row in self._table(report, router_run) if row[0] in behind)

    def solve(self, target: Target, n: int) -> Solved:
        """Solves for a target from what is known, and evaluates the shortened prompt and at most `n` schedules there.

        The stages and the state of the study stay as they are.
        """
        return solve(self._study, target, n)

    def compare(self, plan: ComparisonPlan, report: Report | None = None) -> list[Compared]:
        """Compares other methods with the study's schedules on its test items; what the pipeline did stays as it is.

        With `report`, a report that has been written is written anew, with the comparison.
        """
        with self._stages.beside(COMPARE):
            found = compare(self._study, plan)
            if report is not None and self._stages.has_finished("report"):
                _write_report(self._study, report)
        return found

    def _table(self, report: Report, router_run: int | None = None) -> list[tuple[str, Work, Sequence[str]]]:
        """The flow from top to bottom: each stage, its function, and the stages that are due again when it runs."""
        return [
            ("search", first_search, LAST_STAGES),
            # While the front grows: "tune" once, then "distill-n" and "refine-n", each noted by itself.
            ("rounds", partial(refine, stages=self._stages), ()),
            ("measure", measure_candidates, ("select", "test", "time", "export", "report")),
            ("select", select_candidate, ("test", "time", "export", "report")),
            ("test", partial(compare_selected, router_run=router_run), ("time", "export", "report")),
            ("time", time_selected, ("export", "report")),
            ("export", export_selected, ("report",)),
            ("report", partial(_write_report, report=report), ()),
        ]

    def _go_through(self, rows: Iterable[tuple[str, Work, Sequence[str]]]) -> None:
        for stage, work, due_again in rows:
            if stage == "rounds":
                work(self._study)
            elif self._is_due(stage):
                self._stages.forget(due_again)
                with self._stages.stage(stage):
                    work(self._study)

    def _is_due(self, stage: str) -> bool:
        if stage == "export" and self.config.export == "none":
            return False
        # The report shows all others, and is written in any case.
        return stage == "report" or not self._stages.has_finished(stage)

    def _estimate(self, foreseen: Sequence[str]) -> None:
        if not self._stages.has_finished("search"):
            note_estimate(self._study, foreseen)


def _write_report(study: OpenStudy, report: Report) -> None:
    with study.view.stage("Writing the report", 1) as stage:
        report(study.config.folder(study.name))
        stage.advance()
