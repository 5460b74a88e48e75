"""Reading a study writes nothing to its database."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from search.cli.show import describe_study
from search.config.run_config import RunConfig
from studies import StudyStore, load
from tests.dashboards.records import DATA, REFINED, STUDY


def test_readers_of_a_study_write_nothing(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    with StudyStore(url) as store:
        store.studies.create("one", RunConfig(workers=1).model_dump(), STUDY.objectives)
        store.trials.append("one", DATA.trials[0])
        store.studies.update_facts("one", STUDY.facts)
        store.studies.choose_trial("one", REFINED.number)
        store.results.replace_measurements("one", DATA.measurements)
    said: list[str] = []

    def listen(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        said.append(statement.split()[0].upper())

    sa.event.listen(sa.Engine, "before_cursor_execute", listen)
    try:
        with StudyStore(url, create=False) as store:
            json.dumps(describe_study(store, "one"))
            store.studies.summaries(), store.studies.is_taken("one"), store.studies.is_aside("one")
            store.runs.stages("one"), store.runs.proposer_states("one"), store.runs.holder("one")
            store.trials.of("one"), store.trials.n_begun("one"), store.trials.n_ended("one"), store.columns.of("one")
            store.results.examples("one"), store.routers.of("one")
        load("one", url).trials()
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", listen)
    assert "SELECT" in said and not {"INSERT", "UPDATE", "DELETE", "CREATE", "ALTER"} & set(said)
