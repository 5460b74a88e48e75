"""Operations of editors on single trials: measure and select those of finished studies, export, and prompt."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from search.service.http.file_routes import attachment
from search.service.http.parameters import Number, StudyName
from search.service.http.responses import StudyAnswer
from search.service.http.result_responses import PromptAnswer, ScheduleFile
from search.service.http.study_routes import study_now
from search.service.jobs.prompt_process import PromptProcess
from search.service.jobs.submitting import measure_and_submit
from search.service.rules.problems import described
from search.service.rules.requests import PromptRequest
from search.service.rules.settings import ServiceSettings
from search.stages.origin import exported_schedule
from studies.service.service_store import ServiceStore


def add_points(router: APIRouter, store: ServiceStore, settings: ServiceSettings, prompts: PromptProcess) -> None:
    """Adds the operations to a router."""

    def check_known(name: str, number: int) -> None:
        if store.trials.find(name, number) is None:
            raise HTTPException(404, f"The study has no trial {number} that has ended.")

    @router.post(
        "/studies/{name}/points/{number}/measure",
        status_code=202,
        responses=described(401, 403, 404, 409, 413, 422),
        tags=["results"],
    )
    def measure_point(name: StudyName, number: Number) -> StudyAnswer:
        """Queue a finished study again to measure a trial, too, on validation items and on the clock."""
        check_known(name, number)
        measure_and_submit(name, number, False, store, settings)
        return study_now(store, name)

    @router.post(
        "/studies/{name}/points/{number}/select",
        status_code=202,
        responses=described(401, 403, 404, 409, 413, 422),
        tags=["results"],
    )
    def select_point(name: StudyName, number: Number) -> StudyAnswer:
        """Queue a finished study again to measure, select, test and export a trial, whatever the rules select."""
        check_known(name, number)
        measure_and_submit(name, number, True, store, settings)
        return study_now(store, name)

    @router.post(
        "/studies/{name}/points/{number}/export",
        response_model=ScheduleFile,
        responses=described(401, 403, 404, 413, 422),
        tags=["results"],
    )
    def export_point(name: StudyName, number: Number) -> Response:
        """Download the schedule of a trial with its settings: `schedule.json` of its pruned model, without weights."""
        check_known(name, number)
        return JSONResponse(exported_schedule(store, name, number), headers=attachment(f"{name}-trial-{number}.json"))

    @router.post(
        "/studies/{name}/points/{number}/prompt",
        responses=described(401, 403, 404, 413, 422, 503, 504),
        tags=["results"],
    )
    def prompt_point(name: StudyName, number: Number, body: PromptRequest) -> PromptAnswer:
        """Run a prompt under the schedule of a trial: the blocks that its tokens run, and what both models answer.

        One prompt is answered at a time, by a process that loads the model on the machine of the service. Answers are
        greedy. Nothing of it is kept.
        """
        check_known(name, number)
        return PromptAnswer(**prompts.answer(name, number, body.text, body.new_tokens))
