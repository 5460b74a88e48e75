"""The trials of a study, with every quantity that trials are drawn against."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dashboards.analysis.trials import Found
from studies import Trial
from studies.records.trial_columns import columns_of
from tests.dashboards import records


def measured(trial: Trial) -> Trial:
    """The trial with metrics beside its objectives, if it has these."""
    if trial.values is None:
        return trial
    saved = sum(trial.schedule) / len(trial.schedule)
    metrics = {"accuracy": 1 - saved, "perplexity": 1.2 + trial.values[0], "flops": 4e9 * (1 - saved)}
    return replace(trial, metrics={**metrics, "kv_bytes": 2.0**21 * (1 - saved)})


@pytest.fixture(scope="module")
def found() -> Found:
    return Found.of_study(records.STUDY, columns_of(list(map(measured, records.TRIALS)), 2))
