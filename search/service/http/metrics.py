"""Metrics of the service for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from studies import StudyState
from studies.service.service_store import ServiceStore

CONTENT_TYPE = CONTENT_TYPE_LATEST
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class ServiceMetrics(Collector):
    """Metrics of the requests that were answered, and of what the database holds."""

    def __init__(self, store: ServiceStore) -> None:
        self._store = store
        self._registry = CollectorRegistry()
        names = ("method", "route", "status")
        self._requests = Counter("ftp_search_http_requests", "Requests answered.", names, registry=self._registry)
        self._seconds = Histogram(
            "ftp_search_http_request_seconds",
            "Time until a request was answered whole.",
            ("method", "route"),
            registry=self._registry,
            buckets=_BUCKETS,
        )
        self._registry.register(self)

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Counts a request."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Metrics of what the database holds now."""
        summaries = self._store.studies.summaries()
        studies = GaugeMetricFamily("ftp_search_studies", "Studies by state.", labels=["state"])
        for state in StudyState:
            studies.add_metric([state.value], sum(summary.state is state for summary in summaries))
        yield studies
        yield GaugeMetricFamily(
            "ftp_search_trials", "Trials that have ended, of all studies.", sum(one.n_trials for one in summaries)
        )
        yield GaugeMetricFamily(
            "ftp_search_queued_studies", "Studies that wait for a runner.", len(self._store.queue.waiting())
        )
        runners = [runner for runner in self._store.runners.all() if runner.is_alive]
        alive = GaugeMetricFamily("ftp_search_runners", "Runners that are alive.", labels=["state"])
        busy = sum(runner.study is not None for runner in runners)
        alive.add_metric(["busy"], busy)
        alive.add_metric(["idle"], len(runners) - busy)
        yield alive


class Counted:
    """Middleware that counts requests by route; their paths are too many to be labels."""

    def __init__(self, app: ASGIApp, metrics: ServiceMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500

        async def send_counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_counted)
        finally:
            # Set by the router.
            route = getattr(scope.get("route"), "path", "none")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._metrics.answered(method, route, status, time.perf_counter() - began)
