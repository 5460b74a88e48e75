"""Share of a training's batches that are done, those of the dense model's passes and of evaluations included."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

from ftp_core.training.distillation_config import DistillationConfig


class BatchProgress:
    """Counts the batches of one training.

    Args:
        report: Called with the share of all batches that are done, whenever there are more.
        config: Hyperparameters.
        n_dense: Batches of the dense model's passes that precede the steps.
        n_evaluation: Batches of one evaluation on the held-out set.
    """

    def __init__(
        self, report: Callable[[float], None], config: DistillationConfig, n_dense: int, n_evaluation: int
    ) -> None:
        self._report = report
        self._config = config
        self._n_evaluation = n_evaluation
        self._n_done = 0
        last = ceil(config.steps / config.evaluate_every)
        self._n_all = n_dense + config.steps * config.accumulate + (1 + last) * n_evaluation

    def advance(self, n: int = 1) -> None:
        """Counts batches that are done."""
        self._n_done += n
        self._report(min(1.0, self._n_done / self._n_all))

    def skip_evaluation(self) -> None:
        """Counts an evaluation whose result is known."""
        self.advance(self._n_evaluation)

    def skip_steps(self, steps: int) -> None:
        """Counts steps that an earlier run did, with their evaluations."""
        self.advance(steps * self._config.accumulate + (1 + steps // self._config.evaluate_every) * self._n_evaluation)

    def end(self) -> None:
        """Reports the end, which may come early."""
        self._report(1.0)
