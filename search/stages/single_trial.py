"""Evaluates one schedule with one router in this process, and keeps it as a trial."""

from __future__ import annotations

from datetime import UTC, datetime

from ftp_core.schedule import SparsitySchedule
from search.engine.trial_runner import work_spans
from search.errors import SearchError
from search.evaluators import Task
from search.evaluators.local import LocalEvaluator
from search.inputs.data import search_set
from search.problem.objectives import Objectives
from search.stages.open_study import OpenStudy
from search.stages.stored_router import StoredRouter
from search.stages.study_costs import study_costs
from studies import Trial, TrialState


def add_trial(
    study: OpenStudy, schedule: SparsitySchedule, router: StoredRouter, round: int, proposer: str, parent: int
) -> Trial:
    """Evaluates a schedule on the search set under a trained router, and keeps it as a trial of a round.

    Args:
        study: The study.
        schedule: Schedule to evaluate.
        router: Router that decides which tokens are kept.
        round: Round of the trial.
        proposer: Proposer that the trial names.
        parent: Number of the trial whose schedule it is.

    Raises:
        SearchError: It cannot be evaluated.
    """
    config = study.config
    choices = config.min_accuracy is not None
    examples = search_set(config, study.workload)
    evaluator = LocalEvaluator(study.workload.model.skipping, examples, router=router.router, choices=choices)
    evaluation = evaluator.evaluate(Task(schedule))
    if evaluation.error is not None:
        raise SearchError(f"The schedule {schedule} cannot be evaluated with its new router: {evaluation.error}")
    costs = study_costs(study, router)
    values, violation = Objectives(costs.function(config.cost), config.min_accuracy)(schedule, evaluation.metrics)
    trial = Trial(
        number=study.store.trials.n_begun(study.name),
        schedule=schedule,
        values=values,
        state=TrialState.FINISHED,
        fidelity=1.0,
        proposer=proposer,
        seconds=evaluation.seconds,
        finished_at=datetime.now(UTC),
        metrics={**evaluation.metrics, **costs.of(schedule)},
        constraint_violation=violation,
        round=round,
        router=router.number,
        parents=(parent,),
        work=work_spans([evaluation]),
    )
    study.store.trials.append(study.name, trial)
    return trial
