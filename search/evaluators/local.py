"""Evaluates schedules in this process."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence

from ftp_core.encoding import EncodedExample
from ftp_core.errors import CoreError
from ftp_core.quality import QualitySet
from ftp_core.routers import StaticRouter
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping_model import SkippingModel
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
        metrics, error = {}, None
        try:
            quality = self._quality.evaluate(schedule, self._router)
            metrics = {"kl": quality.kl, "perplexity": quality.perplexity}
        except (CoreError, RuntimeError) as caught:
            error = f"{type(caught).__name__}: {caught}"
        strange = {name: value for name, value in metrics.items() if not math.isfinite(value)}
        if strange:
            # Such a figure cannot be compared, nor stored as JSON: the trial has failed.
            metrics, error = {}, "not finite: " + ", ".join(f"{name} is {value}" for name, value in strange.items())
        return Evaluation(schedule, metrics, time.perf_counter() - started, error)

    def close(self) -> None:
        """See `Evaluator.close`."""
        self._waiting.clear()
