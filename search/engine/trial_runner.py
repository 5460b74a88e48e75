"""Runs trials on evaluators: part by part of the search set, each again if it fails."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from ftp_core.schedule import SparsitySchedule
from search.engine.pruning import Pruner
from search.evaluators import ABLATION_PART, Evaluation, Evaluator, Task
from search.problem.fidelities import evaluations_of
from search.problem.space import ScheduleSpace
from studies import Trial, TrialState
from studies.records.trial import ABLATION, EVALUATIONS, WorkSpan, finite_values

# Evaluations of a schedule that fail or kill their worker before the trial counts as failed.
MAX_ATTEMPTS = 3

# Objective values, lower is better, and the constraint violation, of a schedule and its metrics.
Judge = Callable[[SparsitySchedule, Mapping[str, float]], tuple[tuple[float, ...], float]]


class TrialRunner:
    """Takes running trials and gives them back when they have ended; its arguments are those of `SearchEngine`.

    Attributes:
        blocks_run: Block computations of the trials that ended here.
        blocks_reused: Those that were spared, since their results were known.
    """

    def __init__(
        self,
        space: ScheduleSpace,
        evaluator: Evaluator,
        judge: Judge,
        fidelities: Sequence[float],
        pruner: Pruner,
        ablation_fidelity: float = 1.0,
    ) -> None:
        self._space = space
        self._evaluator = evaluator
        self._judge = judge
        self._fidelities = tuple(fidelities)
        self._ablation_fidelity = ablation_fidelity
        self._pruner = pruner
        self._running: dict[SparsitySchedule, Trial] = {}
        # By number of the trial: the parts evaluated so far as one, and failures of the part at hand.
        self._evaluated: dict[int, Evaluation] = {}
        self._failures: Counter[int] = Counter()
        self.blocks_run = 0
        self.blocks_reused = 0

    def __len__(self) -> int:
        return len(self._running)

    @property
    def capacity(self) -> int:
        """Number of running trials that keeps every worker busy."""
        return self._evaluator.capacity

    def submit(self, trial: Trial) -> None:
        """Starts to evaluate a trial."""
        schedule = SparsitySchedule.of(trial.schedule)
        self._running[schedule] = trial
        part = self._ablation_part if trial.proposer == ABLATION and self._ablation_fidelity < 1.0 else 0
        self._evaluator.submit(Task(schedule, part))

    @property
    def _ablation_part(self) -> int:
        """The part of the search set that ablations are evaluated on: one of its own, unless it is the first."""
        is_first = self._ablation_fidelity == self._fidelities[0]
        return 0 if is_first else ABLATION_PART

    def next_ended(self, timeout_s: float) -> list[Trial]:
        """Waits for evaluations, at most so long, and gives the trials that ended with them."""
        ended = []
        for evaluation in self._evaluator.next_results(timeout_s):
            before = self._running[evaluation.schedule]
            trial = self._advanced(replace(before, work=(*before.work, *work_spans([evaluation]))), evaluation)
            if trial.state is TrialState.RUNNING:
                self._running[evaluation.schedule] = trial
            else:
                del self._running[evaluation.schedule]
                ended.append(trial)
        return ended

    def judged(self, trial: Trial) -> Trial:
        """A trial as its metrics and its fidelity say that it ended: failed if they are not finite."""
        schedule = SparsitySchedule.of(trial.schedule)
        values, violation = self._judge(schedule, trial.metrics)
        violation += self._space.violation_of(schedule)
        state = TrialState.FINISHED if trial.fidelity == 1.0 else TrialState.PRUNED
        judged = replace(trial, state=state, values=values, constraint_violation=violation)
        if judged.is_finite:
            return judged
        # It compares with nothing, so it is kept as one that failed.
        figures = ", ".join(f"{value:g}" for value in (*values, violation))
        error = f"not finite: objective values and constraint violation are {figures}"
        return replace(trial, state=TrialState.FAILED, values=None, constraint_violation=0.0, fidelity=1.0, error=error)

    def recalled(self, trial: Trial, metrics: Mapping[str, float]) -> Trial:
        """A trial that ends at once, since its metrics are known from elsewhere."""
        # It took this study no time, and that is what its proposer is judged by.
        return self.judged(replace(trial, metrics=metrics, finished_at=datetime.now(UTC)))

    def see_rungs(self, trial: Trial) -> None:
        """Lets the pruner know what a trial of an earlier run was worth at lower fidelities."""
        for rung, fidelity in enumerate(self._fidelities[:-1]):
            figures = {name: trial.metrics.get(_at(name, fidelity)) for name in trial.metrics}
            there = {name: figure for name, figure in figures.items() if figure is not None}
            if there:
                values, _ = self._judge(SparsitySchedule.of(trial.schedule), there)
                if finite_values(values):
                    self._pruner.saw(trial.number, rung, values)

    def _advanced(self, trial: Trial, evaluation: Evaluation) -> Trial:
        """A trial after one more evaluation: tried again or taken further, and then still running, or ended."""
        number = trial.number
        if evaluation.error is not None:
            self._failures[number] += 1
            if self._failures[number] < MAX_ATTEMPTS:
                self._evaluator.submit(evaluation.task)
                return trial
            error = f"failed {self._failures[number]} times, at last with: {evaluation.error}"
            failed = replace(trial, state=TrialState.FAILED, metrics={}, error=error)
            return self._ended(failed, evaluation)
        before = self._evaluated.get(number)
        whole = evaluation if before is None else before.joined(evaluation)
        part = evaluation.task.part
        if trial.proposer == ABLATION and self._ablation_fidelity < 1.0 and part == self._ablation_part:
            # It ends here: it is asked for what proposers learn from it.
            counted = evaluations_of(self._space.grid_indices(trial.schedule), self._ablation_fidelity)
            metrics = {**whole.metrics, EVALUATIONS: counted}
            return self._ended(self.judged(replace(trial, metrics=metrics, fidelity=self._ablation_fidelity)), whole)
        fidelity = self._fidelities[part]
        if fidelity < 1.0:
            values, _ = self._judge(evaluation.schedule, whole.metrics)
            if finite_values(values):
                rung = {_at(name, fidelity): figure for name, figure in whole.metrics.items()}
                trial = replace(trial, metrics={**trial.metrics, **rung})
                if self._pruner.goes_on(number, part, values):
                    self._evaluated[number] = whole
                    self._failures.pop(number, None)
                    self._evaluator.submit(Task(evaluation.schedule, part + 1))
                    return trial
        trial = replace(trial, metrics={**whole.metrics, **trial.metrics}, fidelity=fidelity)
        return self._ended(self.judged(trial), whole)

    def _ended(self, trial: Trial, whole: Evaluation) -> Trial:
        self._evaluated.pop(trial.number, None)
        self._failures.pop(trial.number, None)
        self.blocks_run += whole.blocks_run
        self.blocks_reused += whole.blocks_reused
        return replace(trial, seconds=whole.seconds, finished_at=datetime.now(UTC))


def work_spans(evaluations: Iterable[Evaluation]) -> tuple[WorkSpan, ...]:
    """Times at which workers evaluated, to the millisecond, as far as they are known."""
    return tuple(
        WorkSpan(one.worker, datetime.fromtimestamp(round(one.began_at, 3), UTC), round(one.seconds, 3))
        for one in evaluations
        if one.worker is not None and one.began_at is not None
    )


def _at(name: str, fidelity: float) -> str:
    """Name of a figure of a lower fidelity beside that of the highest."""
    return f"{name}@{fidelity:g}"
