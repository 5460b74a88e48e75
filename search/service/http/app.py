"""The ASGI application: the API, access control, and a dashboard if one is given."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import APIRouter, Depends, FastAPI
from fastapi.responses import Response
from starlette.middleware import Middleware

from search.service.auth.access import AccessControl, is_editor
from search.service.auth.attempts import FailedAttempts
from search.service.auth.hardening import Hardened, LimitedBodies, content_policy
from search.service.auth.login import add_login
from search.service.http.document import complete_document
from search.service.http.file_routes import add_files
from search.service.http.heads import HeadsOfGets
from search.service.http.live import add_live
from search.service.http.metrics import CONTENT_TYPE, Counted, ServiceMetrics
from search.service.http.parameters import known_query
from search.service.http.point_routes import add_points
from search.service.http.responses import Health, RunnerAnswer, RunnerList
from search.service.http.result_routes import add_results
from search.service.http.study_routes import add_studies
from search.service.http.transfer import Compressed, Conditional
from search.service.jobs.prompt_process import PromptProcess
from search.service.rules.problems import answer_with_problems, described
from search.service.rules.settings import ServiceSettings
from studies.service.service_store import ServiceStore

# Mounts a dashboard on the application, behind the same access control. Takes the application, the store, a function
# that says whether the current request comes from an editor, and what answers prompts. Returns sources of the
# Content-Security-Policy that its pages need beside those of `search.service.auth.hardening`, such as
# {"style-src": ("'unsafe-inline'",)}.
MountDashboard = Callable[[FastAPI, ServiceStore, Callable[[], bool], PromptProcess], Mapping[str, Sequence[str]]]


def create_app(store: ServiceStore, settings: ServiceSettings, dashboard: MountDashboard | None = None) -> FastAPI:
    """The application of the service, which closes the store as it ends; without a dashboard, the API alone."""
    metrics, attempts, prompts = ServiceMetrics(store), FailedAttempts(), PromptProcess(store, settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        prompts.close()
        store.close()

    app = FastAPI(
        title="ftp-search",
        version=version("ftp-search"),
        description="Studies of sparsity schedules: submit, follow, stop and resume them, and fetch their results.",
        openapi_url="/api/v1/openapi.json",
        # Their pages load scripts from other sites.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    router = APIRouter(prefix="/api/v1", dependencies=[Depends(known_query)])
    _add_system(app, router, store, metrics)
    add_login(app, router, store, attempts)
    add_studies(router, store, settings)
    add_results(router, store)
    add_points(router, store, settings, prompts)
    add_live(router, store, settings)
    add_files(router, store)
    app.include_router(router)
    answer_with_problems(app)
    complete_document(app)
    sources = {} if dashboard is None else dashboard(app, store, is_editor, prompts)
    # From the outermost to the innermost.
    app.user_middleware[:0] = [
        Middleware(Hardened, policy=content_policy(sources)),
        Middleware(Counted, metrics=metrics),
        Middleware(HeadsOfGets),
        Middleware(AccessControl, store=store, settings=settings, attempts=attempts),
        Middleware(LimitedBodies, most=settings.max_body_bytes, most_s=settings.body_s),
        Middleware(Compressed),
        Middleware(Conditional),
    ]
    return app


def _add_system(app: FastAPI, router: APIRouter, store: ServiceStore, metrics: ServiceMetrics) -> None:
    @router.get("/health", responses=described(422), tags=["service"])
    async def health() -> Health:
        """Check that the service answers."""
        # Async, so that it needs none of the threads, which may all be waiting for the database.
        return Health()

    @router.get("/ready", responses=described(422, 503), tags=["service"])
    def ready() -> Health:
        """Check that the service and its database answer."""
        store.tokens.exist()
        return Health()

    @router.get("/runners", responses=described(401, 422), tags=["service"])
    def list_runners() -> RunnerList:
        """List the runners and the studies that they run."""
        return RunnerList(items=[RunnerAnswer.model_validate(runner) for runner in store.runners.all()])

    @app.get("/metrics", include_in_schema=False)
    def get_metrics() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE)
