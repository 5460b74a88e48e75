"""A study of Optuna's alone as plain values, for `show`."""

from __future__ import annotations

from typing import Any

import optuna
from optuna.trial import TrialState

from studies import StudyStore
from studies.store.optuna_studies import OptunaStudy

# Its state, in a list of studies.
OPTUNAS = "optuna"


def describe_optuna_study(store: StudyStore, study: OptunaStudy) -> dict[str, Any]:
    """What is known of a study that this program has not begun.

    Args:
        store: Where it lives.
        study: The study.
    """
    loaded = optuna.load_study(study_name=study.name, storage=store.storage)
    trials = loaded.get_trials(deepcopy=False)
    # Without constraints and with one objective, too, these are the best ones.
    best = loaded.best_trials if any(trial.state is TrialState.COMPLETE for trial in trials) else []
    return {
        "name": study.name,
        "state": OPTUNAS,
        "trials": study.n_ended,
        "trials_by_state": dict(study.trials),
        "directions": list(study.directions),
        "parameters": sorted({name for trial in trials for name in trial.params}),
        "attributes": dict(study.attributes),
        "best": [{"number": one.number, "values": list(one.values), "params": dict(one.params)} for one in best],
    }
