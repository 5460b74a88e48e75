"""A study's own schedules in the form of the methods that they are compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ftp_core.baselines.protocol import Budget, Preparation, Sparsity
from ftp_core.baselines.pruned import ScheduledModel
from ftp_core.cost.flops import FlopsCounter
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import EncodedExample
from search.errors import SearchError
from search.stages.open_study import OpenStudy
from studies import Trial
from studies.records.compared import OURS

# Operations that a schedule may lack of what is asked for, as a share of the dense prefill's.
_SLACK = 0.005


class OwnSchedules:
    """The schedule with the lowest KL on the search set among those of a study that save enough operations.

    Args:
        study: The study.
    """

    name = OURS
    paper = ""
    has_chance = False
    trains = False

    def __init__(self, study: OpenStudy) -> None:
        self._study = study
        self._trials = [one for one in study.trials() if one.is_comparable and one.is_finite]

    def fit(
        self,
        model: SkippingModel,
        calibration: Sequence[EncodedExample],
        budget: Budget,
        seed: int = 0,
        on_step: Callable[[float], None] = lambda share: None,
    ) -> ScheduledModel:
        """See `Baseline`.

        Raises:
            SearchError: No schedule of the study saves as many operations.
        """
        # With what stands in for skipped halves, which `model` may lack.
        own = self._study.workload.model.skipping
        counter, most = FlopsCounter(own), budget.target_flops(model) + _SLACK * budget.dense_flops(model)
        cheap = [one for one in self._trials if self._flops(counter, one, budget) <= most]
        if not cheap:
            raise SearchError(
                f"No schedule of study {self._study.name!r} saves {budget.share:.1%} of the operations: find one with "
                f"`ftp-search solve {self._study.name} --target-flops-saved {budget.share:.2f}`."
            )
        best = min(cheap, key=lambda one: (one.values or (), one.number))
        on_step(1.0)
        router, facts = self._study.router(best.router), self._study.store.runs.stages(self._study.name)
        return ScheduledModel(
            OURS,
            model,
            own,
            SparsitySchedule.of(best.schedule),
            Sparsity(best.overall_sparsity, f"of tokens skip a block (trial {best.number})"),
            # Tokens are not counted while a study runs.
            Preparation(sum(stage.seconds or 0.0 for stage in facts if _prepares(stage.name)), 0),
            router.router,
        )

    def _flops(self, counter: FlopsCounter, trial: Trial, budget: Budget) -> float:
        router = self._study.router(trial.router).router
        return counter.count(trial.schedule, budget.batch, budget.length, router=router).total


def _prepares(stage: str) -> bool:
    return stage.partition("-")[0] in ("search", "tune", "distill", "refine")
