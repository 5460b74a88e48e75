"""Operations on studies: create, list, show, label, stop, resume, delete."""

from __future__ import annotations

from functools import partial
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Query, Response

from dashboards.analysis.run_progress import progress_of
from search.config.study_name import normalised
from search.service.http.parameters import Limit, Offset, StudyName
from search.service.http.responses import (
    ProgressAnswer,
    StageAnswer,
    StagesAnswer,
    StudyAnswer,
    StudyList,
    study_answer,
    study_line,
)
from search.service.jobs.submitting import create_and_submit, resume_and_submit
from search.service.rules.problems import described
from search.service.rules.requests import LabelsRequest, ResumeRequest, StudyRequest
from search.service.rules.settings import ServiceSettings
from studies.service.service_store import ServiceStore
from studies.service.submissions import RunState, run_state


def study_now(store: ServiceStore, name: str) -> StudyAnswer:
    """A study as it stands, without its trials."""
    # The submission is read first: a study's state is final before its submission ends.
    submission = store.queue.get(name)
    study = store.studies.get(name)
    return study_answer(study, store.trials.n_ended(name), store.runs.stages(name), submission)


def add_studies(router: APIRouter, store: ServiceStore, settings: ServiceSettings) -> None:
    """Adds the operations to a router."""
    answer = partial(study_now, store)

    @router.get("/studies", responses=described(401, 422), tags=["studies"])
    def list_studies(
        state: Annotated[RunState | None, Query(description="Only studies in this state.")] = None,
        tag: Annotated[str | None, Query(max_length=200, description="Only studies with this tag.")] = None,
        sweep: Annotated[str | None, Query(max_length=200, description="Only studies of this sweep.")] = None,
        offset: Offset = 0,
        limit: Limit = 100,
    ) -> StudyList:
        """List studies, oldest first."""
        submissions = store.queue.all()
        lines = [study_line(summary, submissions.get(summary.name)) for summary in store.studies.summaries()]
        lines = [
            line
            for line in lines
            if (state is None or line.state is state)
            and (tag is None or normalised(tag) in line.tags)
            and (sweep is None or normalised(sweep) == line.sweep)
        ]
        return StudyList(items=lines[offset : offset + limit], total=len(lines))

    @router.post("/studies", status_code=201, responses=described(401, 403, 409, 413, 422), tags=["studies"])
    def create_study(request: StudyRequest, response: Response) -> StudyAnswer:
        """Create a study and queue it for the runners.

        Settings and files are checked now; model and data are loaded by the runner, where the study may still fail.
        """
        create_and_submit(request, store, settings)
        response.headers["Location"] = f"/api/v1/studies/{quote(request.name, safe='')}"
        return answer(request.name)

    @router.get("/studies/{name}", responses=described(401, 404, 422), tags=["studies"])
    def get_study(name: StudyName) -> StudyAnswer:
        """Get the configuration and the state of a study."""
        return answer(name)

    @router.patch("/studies/{name}/labels", responses=described(401, 403, 404, 413, 422), tags=["studies"])
    def label_study(name: StudyName, request: LabelsRequest) -> StudyAnswer:
        """Give a study other tags, or another note, whatever it does at the moment."""
        store.studies.label(name, **request.given())
        return answer(name)

    @router.get("/studies/{name}/stages", responses=described(401, 404, 422), tags=["studies"])
    def get_stages(name: StudyName) -> StagesAnswer:
        """Get the stages of a study, and the progress of the one that runs."""
        submission = store.queue.get(name)
        study, stages = store.studies.get(name), store.runs.stages(name)
        said = store.events.latest(name, ("figures",))
        state = run_state(study.state, submission)
        now = progress_of(store, study, state, stages, said[-1].content if said else {})
        items = [StageAnswer.model_validate(one) for one in stages]
        return StagesAnswer(state=state, items=items, progress=ProgressAnswer.model_validate(now))

    @router.delete(
        "/studies/{name}",
        status_code=204,
        response_class=Response,
        responses=described(401, 403, 404, 409, 422),
        tags=["studies"],
    )
    def delete_study(name: StudyName) -> Response:
        """Delete a study from the database; files of its report stay."""
        store.delete_study(name)
        return Response(status_code=204)

    @router.post(
        "/studies/{name}/stop", status_code=202, responses=described(401, 403, 404, 409, 422), tags=["studies"]
    )
    def stop_study(name: StudyName) -> StudyAnswer:
        """Stop a study: running evaluations end, all results are kept, and it can be resumed."""
        store.queue.request_stop(name)
        return answer(name)

    @router.post(
        "/studies/{name}/resume", status_code=202, responses=described(401, 403, 404, 409, 413, 422), tags=["studies"]
    )
    def resume_study(name: StudyName, request: ResumeRequest | None = None) -> StudyAnswer:
        """Queue a study again, optionally with changed settings; finished work is not repeated."""
        resume_and_submit(name, request, store, settings)
        return answer(name)
