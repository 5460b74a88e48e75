"""Operations on the results of studies: trials, fronts, hypervolume, comparisons, schedules, routers, logs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.exceptions import HTTPException

from search.service.http.analysis import cached_analyses, cached_columns
from search.service.http.parameters import After, Limit, Number, StudyName
from search.service.http.responses import Log, StudyAnswer, log_line
from search.service.http.result_responses import (
    ComparedAnswer,
    ComparisonAnswer,
    Front,
    MeasurementAnswer,
    Measurements,
    RouterAnswer,
    Routers,
    ScheduleAnswer,
    SelectionAnswer,
    TrialAnswer,
    TrialPage,
    VolumeHistory,
    VolumePoint,
)
from search.service.http.study_routes import study_now
from search.service.http.trial_query import TrialQuery, asked_page
from search.service.jobs.submitting import compare_and_submit
from search.service.rules.problems import described
from search.service.rules.requests import ComparisonRequest
from studies import Trial
from studies.analysis.paired import paired_accuracy, paired_kl
from studies.records.compared import OURS, latest
from studies.service.service_store import ServiceStore


def add_results(router: APIRouter, store: ServiceStore) -> None:
    """Adds the operations to a router."""
    analysis_of, columns_of = cached_analyses(store), cached_columns(store)
    problems = described(401, 404, 422)

    def one_trial(name: str, number: int) -> Trial:
        found = store.trials.find(name, number)
        if found is None:
            raise HTTPException(404, f"The study has no trial {number} that has ended.")
        return found

    @router.get("/studies/{name}/trials", responses=problems, tags=["results"])
    def list_trials(name: StudyName, query: Annotated[TrialQuery, Query()]) -> TrialPage:
        """List trials that have ended, by number or sorted by a value."""
        objectives = store.studies.get(name).objectives
        front = [] if query.front is None else [trial.number for trial in analysis_of(name).front]
        numbers, following = asked_page(query, columns_of(name), objectives, front)
        items = [TrialAnswer.model_validate(trial) for trial in store.trials.some(name, numbers)]
        return TrialPage(items=items, next=following)

    @router.get("/studies/{name}/comparison", responses=problems, tags=["results"])
    def get_comparison(name: StudyName) -> ComparisonAnswer:
        """Get what other methods came to on the study's test items, as `ftp-search compare` keeps it."""
        rows = latest(store.comparisons.of(name))
        ours = {(one.match, one.target): one.model for one in rows if one.method == OURS and one.model is not None}
        items = []
        for one in rows:
            answer, own = ComparedAnswer.model_validate(one), ours.get((one.match, one.target))
            if one.model is not None and own is not None and one.method != OURS:
                right = paired_accuracy(one.model.item_right, own.item_right)
                answer.kl_to_ours = paired_kl(one.model.item_kl, own.item_kl, own.item_tokens).judgement
                answer.accuracy_to_ours = None if right is None else right.judgement
            items.append(answer)
        return ComparisonAnswer(items=items)

    @router.post(
        "/studies/{name}/comparison",
        status_code=202,
        responses=described(401, 403, 404, 409, 413, 422),
        tags=["results"],
    )
    def start_comparison(name: StudyName, request: ComparisonRequest) -> StudyAnswer:
        """Queue a finished study for other methods to be prepared and measured beside its schedules.

        Rows appear in the comparison as they are measured; what is known is not measured again.
        """
        compare_and_submit(name, request, store)
        return study_now(store, name)

    @router.get("/studies/{name}/trials/{number}", responses=problems, tags=["results"])
    def get_trial(name: StudyName, number: Number) -> TrialAnswer:
        """Get a trial that has ended."""
        return TrialAnswer.model_validate(one_trial(name, number))

    @router.get("/studies/{name}/trials/{number}/schedule", responses=problems, tags=["results"])
    def get_schedule(name: StudyName, number: Number) -> ScheduleAnswer:
        """Get the schedule of a trial."""
        found = one_trial(name, number)
        about = {"trial": number, "overall_sparsity": found.overall_sparsity, "router": found.router}
        return ScheduleAnswer.model_validate({**about, "schedule": found.schedule})

    @router.get("/studies/{name}/front", responses=problems, tags=["results"])
    def get_front(name: StudyName) -> Front:
        """List the non-dominated trials."""
        items = [TrialAnswer.model_validate(point) for point in analysis_of(name).front]
        return Front(objectives=list(store.studies.get(name).objectives), items=items)

    @router.get("/studies/{name}/hypervolume", responses=problems, tags=["results"])
    def get_hypervolume(name: StudyName) -> VolumeHistory:
        """Get the growth of the front's hypervolume."""
        found = analysis_of(name)
        return VolumeHistory(
            reference=None if found.reference is None else list(found.reference),
            items=[
                VolumePoint(trial=trial.number, finished_at=trial.finished_at, value=value)
                for trial, value in found.growth
                if trial.finished_at is not None
            ],
        )

    @router.get("/studies/{name}/measurements", responses=problems, tags=["results"])
    def list_measurements(
        name: StudyName,
        split: Annotated[
            str | None, Query(max_length=200, description="Only those on these items, such as `test` or `validation`.")
        ] = None,
    ) -> Measurements:
        """List what was measured of the dense model, of candidates, and of what the selected trial is compared with."""
        found = [one for one in store.results.measurements(name) if split in (None, one.split)]
        return Measurements(items=[MeasurementAnswer.model_validate(one) for one in found])

    @router.get("/studies/{name}/selection", responses=problems, tags=["results"])
    def get_selection(name: StudyName) -> SelectionAnswer:
        """Get the trial that was selected, and why."""
        selection = store.studies.get(name).facts.selection
        if selection is None:
            raise HTTPException(404, "The study has selected no trial yet: GET its stages for how far it is.")
        return SelectionAnswer.model_validate(selection)

    @router.get("/studies/{name}/routers", responses=problems, tags=["results"])
    def list_routers(name: StudyName) -> Routers:
        """List the distilled routers, without their weights."""
        return Routers(items=[RouterAnswer.model_validate(run) for run in store.routers.of(name)])

    @router.get("/studies/{name}/logs", responses=problems, tags=["results"])
    def get_logs(name: StudyName, after: After = 0, limit: Limit = 500) -> Log:
        """List the lines that the runs of a study printed, oldest first."""
        lines = [log_line(event) for event in store.events.of(name, max(after, 0), limit, ("log",))]
        return Log(items=lines, next=lines[-1].number if lines else max(after, 0))
