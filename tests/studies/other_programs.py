"""What other programs may do to a study of schedules through Optuna: all of it, with Optuna itself."""

from __future__ import annotations

import math
import warnings
from contextlib import suppress

import optuna
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.storages import BaseStorage
from optuna.trial import TrialState, create_trial

from studies.records.records import LeftAside

SHARE = FloatDistribution(0.0, 0.95, step=0.05)


def space_of(n_blocks: int) -> dict[str, FloatDistribution]:
    """A space whose parameters are a schedule."""
    return {f"block_{block}": SHARE for block in range(n_blocks)}


def interfere(storage: BaseStorage, name: str, n_blocks: int = 2) -> LeftAside:
    """Add trials in every way that Optuna has, each better than whatever a search finds; tells how many there are."""
    study = optuna.load_study(study_name=name, storage=storage, sampler=optuna.samplers.RandomSampler(seed=0))
    space = space_of(n_blocks)
    half, best = dict.fromkeys(space, 0.5), (-5.0, -5.0)
    # Ended: complete with values of every kind, pruned, failed, and with attributes that look like a search's.
    for values in (best, (math.inf, -5.0), (-math.inf, math.inf), (0.1, -math.inf)):
        study.tell(study.ask(space), values)
    constrained = study.ask(space)
    constrained.set_constraint("memory", 0.5)
    study.tell(constrained, best)
    for state in (TrialState.PRUNED, TrialState.FAIL):
        study.tell(study.ask(space), state=state)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study.tell(study.ask(space), (math.nan, 0.1))
    labelled = study.ask(space)
    labelled.set_user_attr("metrics", {"kl": -5.0})
    labelled.set_user_attr("proposer", "ablation")
    study.tell(labelled, best)
    study.add_trial(
        create_trial(params=half, distributions=space, values=best, system_attrs={"constraints": [1.0, -1.0]})
    )
    wider = dict.fromkeys(space, FloatDistribution(0.0, 3.0))
    study.add_trial(create_trial(params=dict.fromkeys(space, 1.5), distributions=wider, values=best))
    study.tell(study.ask({"other": IntDistribution(0, 3)}), best)

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        for block, distribution in space.items():
            trial.suggest_float(block, distribution.low, distribution.high, step=distribution.step)
        if trial.number != first:
            raise KeyboardInterrupt
        return best

    first = len(study.get_trials(deepcopy=False))
    with suppress(KeyboardInterrupt):
        study.optimize(objective, n_trials=20)
    # Whoever was killed leaves these running.
    study.ask(space)
    study.ask({"other": IntDistribution(0, 3)})
    study.enqueue_trial(half)
    study.enqueue_trial({"block_0": 0.25})
    study.add_trial(create_trial(state=TrialState.WAITING, params=half, distributions=space))
    return LeftAside(ended=14, running=2, waiting=3)
