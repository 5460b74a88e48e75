"""The numbers of a report for programs say what schedules do."""

from __future__ import annotations

from dataclasses import replace

from dashboards.report.plain_values import report_json
from studies.records.halves import Halves
from tests.dashboards.records import DATA

SPLIT = Halves((0.5, 0.0, 0.25, 0.75, 1.0, 0.0))
SAID = {"attention": [0.5, 0.0], "mlp": [0.25, 0.75], "keeps_kv": [1, 0]}


def test_schedules_of_whole_blocks_are_lists_and_those_with_halves_say_what_each_does() -> None:
    plain = report_json(DATA)
    assert all(isinstance(one["schedule"], list) for one in (*plain["front"], *plain["rows"], *plain["measurements"]))
    trials = [replace(trial, schedule=SPLIT) for trial in DATA.trials]
    measured = [replace(one, schedule=SPLIT) for one in DATA.measurements]
    runs = [replace(run, schedule=SPLIT) for run in DATA.router_runs]
    found = report_json(replace(DATA, trials=trials, measurements=measured, router_runs=runs))
    for part in ("front", "rows", "measurements", "routers"):
        assert found[part] and all(one["schedule"] == SAID for one in found[part]), part
