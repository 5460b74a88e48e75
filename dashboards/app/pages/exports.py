"""Files that leave the pages: a figure as a page, trials and fronts as CSV, a study as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import FastAPI, Path, Query
from fastapi.responses import Response, StreamingResponse
from starlette.exceptions import HTTPException

from dashboards.analysis.axes import OFFERED, default_axes
from dashboards.analysis.trials import Found
from dashboards.app.data_source import Watch
from dashboards.figures import front_figure
from dashboards.report.plain_values import csv_text, report_json
from studies.records.halves import parameter_names
from studies.records.trial_columns import STATES

_AT_ONCE = 2000
# A saved page draws itself, wherever it is opened, and asks nobody.
_POLICY = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; "
    "img-src data: blob:"
)
# With these, spreadsheets take text for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")

StudyName = Annotated[str, Path(min_length=1, max_length=1000)]
AxisName = Annotated[str | None, Query(max_length=64)]


def add_exports(app: FastAPI, watch: Watch) -> None:
    """Add the addresses that pages link to; they stay out of the API's document."""

    @app.get("/export/{name}/figure.html", include_in_schema=False)
    def figure(name: StudyName, x: AxisName = None, y: AxisName = None) -> Response:
        standing = watch.standing(name)
        across, upwards = default_axes(standing.study.objectives)
        chosen = (across if x is None else x, upwards if y is None else y)
        if any(one not in (*OFFERED, *standing.study.objectives) for one in chosen):
            raise HTTPException(422, f"x or y is no quantity: expected one of {', '.join(OFFERED)}.")
        drawn = front_figure(
            watch.found(name),
            *chosen,
            selected=standing.study.chosen_trial,
            measurements=watch.measurements(name),
            compared=watch.store.comparisons.of(name),
            standalone=True,
        )
        page = drawn.to_html(config={"displaylogo": False, "responsive": True})
        return _file(page, f"{name}.html", "text/html; charset=utf-8")

    @app.get("/export/{name}/front.csv", include_in_schema=False)
    def front(name: StudyName) -> Response:
        found = watch.found(name)
        return _file("".join(_lines(found, found.front().tolist())), f"{name}-front.csv", "text/csv; charset=utf-8")

    @app.get("/export/{name}/trials.csv", include_in_schema=False)
    def trials(name: StudyName) -> Response:
        found = watch.found(name)
        headers = _headers(f"{name}-trials.csv")
        return StreamingResponse(
            _lines(found, range(len(found))), media_type="text/csv; charset=utf-8", headers=headers
        )

    @app.get("/export/{name}/study.json", include_in_schema=False)
    def study(name: StudyName) -> Response:
        standing, found = watch.standing(name), watch.found(name)
        data = watch.report_data(name, standing)
        # Nothing else of the trials is in it than their front, and where rows come from.
        points = found.records(found.front())
        shown = {trial.number for trial in points}
        data = replace(data, trials=[*points, *(trial for trial in data.trials if trial.number not in shown)])
        plain = report_json(data)
        plain["config"].pop("ray_address", None)
        plain["evaluation_seconds"] = float(found.columns.seconds.sum())
        return _file(json.dumps(plain, indent=2), f"{name}.json", "application/json")


def _lines(found: Found, places: Any) -> Iterator[str]:
    columns, objectives = found.columns, found.objectives
    metrics = [name for name in columns.metrics if name not in objectives]
    headings = ["trial", "state", "proposer", "parents", "worker", "round", "fidelity", "seconds"]
    headings += ["constraint_violation", "overall_sparsity", *objectives, *metrics]
    workers = [columns.workers[place] if place >= 0 else "" for place in columns.worker.tolist()]
    yield csv_text([*headings, *parameter_names(columns.n_blocks, columns.has_halves)], [])
    for start in range(0, len(places), _AT_ONCE):
        first, *others = [_line(found, place, workers[place], metrics) for place in places[start : start + _AT_ONCE]]
        yield csv_text(first, others)


def _line(found: Found, place: int, worker: str, metrics: list[str]) -> list[Any]:
    columns = found.columns
    figures = [*columns.values[place].tolist(), *(float(columns.metrics[name][place]) for name in metrics)]
    return [
        int(columns.number[place]),
        STATES[columns.state[place]].value,
        _text(columns.proposers[columns.proposer[place]]),
        " ".join(map(str, columns.parents_of(place))),
        _text(worker),
        int(columns.round[place]),
        float(columns.fidelity[place]),
        float(columns.seconds[place]),
        float(columns.constraint_violation[place]),
        round(float(columns.schedule[place].mean()), 6),
        *("" if figure != figure else figure for figure in figures),
        *(round(float(share), 6) for share in (columns.halves if columns.has_halves else columns.schedule)[place]),
    ]


def _text(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text


def _headers(file: str) -> dict[str, str]:
    name = quote(file, safe="")
    return {"Content-Disposition": f"attachment; filename*=UTF-8''{name}", "Content-Security-Policy": _POLICY}


def _file(content: str, file: str, media_type: str) -> Response:
    return Response(content, media_type=media_type, headers=_headers(file))
