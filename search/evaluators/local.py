"""Evaluates schedules in this process."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

from ftp_core.encoding import EncodedExample
from ftp_core.errors import CoreError
from ftp_core.quality import QualitySet
from ftp_core.routing import StaticRouter
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping import SkippingModel
from search.evaluators import Evaluation


class LocalEvaluator:
    """One model in this process; `next_result` evaluates what was submitted first.

    Args:
        model: The model.
        examples: Calibration examples.
    """

    capacity = 1

    def __init__(self, model: SkippingModel, examples: Sequence[EncodedExample]) -> None:
        self._quality = QualitySet(model, examples)
        self._router = StaticRouter()
        self._waiting: deque[SparsitySchedule] = deque()

    def submit(self, schedule: SparsitySchedule) -> None:
        """See `Evaluator.submit`."""
        self._waiting.append(schedule)

    def next_result(self) -> Evaluation:
        """See `Evaluator.next_result`."""
        return self.evaluate(self._waiting.popleft())

    def evaluate(self, schedule: SparsitySchedule) -> Evaluation:
        """KL and perplexity under the static router; a schedule that fails comes back with its error."""
        started = time.perf_counter()
        try:
            quality = self._quality.evaluate(schedule, self._router)
        except (CoreError, RuntimeError) as error:
            return Evaluation(schedule, seconds=time.perf_counter() - started, error=f"{type(error).__name__}: {error}")
        metrics = {"kl": quality.kl, "perplexity": quality.perplexity}
        return Evaluation(schedule, metrics, time.perf_counter() - started)

    def close(self) -> None:
        """See `Evaluator.close`."""
        self._waiting.clear()
