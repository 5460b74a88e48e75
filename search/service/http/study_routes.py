"""The operations on studies: create, list, look at, stop, resume, delete."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Query, Response

from search.service.http.parameters import Limit, Offset, StudyName
from search.service.http.responses import StudyAnswer, StudyList, study_answer, study_line
from search.service.jobs.submitting import create_and_submit, resume_and_submit
from search.service.rules.problems import described
from search.service.rules.requests import ResumeRequest, StudyRequest
from search.service.rules.settings import ServiceSettings
from studies.service.service_store import ServiceStore
from studies.service.submissions import RunState


def add_studies(router: APIRouter, store: ServiceStore, settings: ServiceSettings) -> None:
    """Add the operations.

    Args:
        router: Gets them.
        store: Where studies live.
        settings: How the service is set up.
    """

    def answer(name: str) -> StudyAnswer:
        # In this order: what ends a submission also says where the study stands.
        submission = store.queue.get(name)
        study = store.studies.get(name)
        return study_answer(study, store.trials.n_ended(name), store.runs.stages(name), submission)

    @router.get("/studies", responses=described(401, 422), tags=["studies"])
    def list_studies(
        state: Annotated[RunState | None, Query(description="Only those that stand so.")] = None,
        offset: Offset = 0,
        limit: Limit = 100,
    ) -> StudyList:
        """List studies, oldest first."""
        submissions = store.queue.all()
        lines = [study_line(summary, submissions.get(summary.name)) for summary in store.studies.summaries()]
        lines = [line for line in lines if state is None or line.state is state]
        return StudyList(items=lines[offset : offset + limit], total=len(lines))

    @router.post("/studies", status_code=201, responses=described(401, 403, 409, 413, 422), tags=["studies"])
    def create_study(request: StudyRequest, response: Response) -> StudyAnswer:
        """Create a study and hand it to the runners.

        Model and data are looked at now, and loaded by the runner: it may find more that is wrong, and the study has
        failed then.
        """
        create_and_submit(request, store, settings)
        response.headers["Location"] = f"/api/v1/studies/{quote(request.name, safe='')}"
        return answer(request.name)

    @router.get("/studies/{name}", responses=described(401, 404, 422), tags=["studies"])
    def get_study(name: StudyName) -> StudyAnswer:
        """Say how a study is configured and where it stands."""
        return answer(name)

    @router.delete(
        "/studies/{name}",
        status_code=204,
        response_class=Response,
        responses=described(401, 403, 404, 409, 422),
        tags=["studies"],
    )
    def delete_study(name: StudyName) -> Response:
        """Delete a study with everything that the database knows of it; files of its report stay."""
        store.delete_study(name)
        return Response(status_code=204)

    @router.post(
        "/studies/{name}/stop", status_code=202, responses=described(401, 403, 404, 409, 422), tags=["studies"]
    )
    def stop_study(name: StudyName) -> StudyAnswer:
        """Stop a study: what is being evaluated ends, everything is kept, and it can be resumed."""
        store.queue.request_stop(name)
        return answer(name)

    @router.post(
        "/studies/{name}/resume", status_code=202, responses=described(401, 403, 404, 409, 413, 422), tags=["studies"]
    )
    def resume_study(name: StudyName, request: ResumeRequest | None = None) -> StudyAnswer:
        """Hand a study to the runners again, perhaps with more trials; nothing that has finished is done again."""
        resume_and_submit(name, request, store, settings)
        return answer(name)
