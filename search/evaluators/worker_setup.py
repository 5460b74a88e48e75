"""What a worker needs before its first task: the model and the search set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ftp_core.routers import Router
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import EncodedExample
from search.evaluators.local import LocalEvaluator
from search.evaluators.shared_model import SharedModel


class ModelSetup:
    """Makes evaluators of one model and one search set; see `LocalEvaluator` for what is not said here.

    Made in the process that has the model, and pickled to those of the workers, whose models lie over the memory that
    the pickle's arrays are in (see `SharedModel`).

    Args:
        model: The model.
        examples: The search set.
        fidelities: Shares of the search set at which its parts end.
        router: Names the kept tokens; None for the static router.
        choices: Whether to score multiple-choice items, too.
        batch_size: Prompts in a batch.
        prefix_bytes: Most memory of each worker for what schedules can share.

    Raises:
        EvaluationError: The model cannot be pickled.
    """

    def __init__(
        self,
        model: SkippingModel,
        examples: Sequence[EncodedExample],
        *,
        fidelities: Sequence[float] = (1.0,),
        router: Router | None = None,
        choices: bool = False,
        batch_size: int = 16,
        prefix_bytes: int = 0,
    ) -> None:
        self._model, self._keep_first = SharedModel(model.model), model.keep_first
        self._examples = list(examples)
        self._fidelities = tuple(fidelities)
        self._router = router
        self._choices = choices
        self._batch_size = batch_size
        self._prefix_bytes = prefix_bytes

    def start(self, device: str, halvings: int) -> LocalEvaluator:
        """Load the model.

        Args:
            device: Where it shall run.
            halvings: How often to halve batches and the memory for what schedules share, for want of memory.
        """
        if device == "cpu":
            # A worker has one core; more threads than that would fight with the other workers.
            torch.set_num_threads(1)
        model: Any = self._model.load().to(device)
        return LocalEvaluator(
            SkippingModel(model, self._keep_first),
            self._examples,
            fidelities=self._fidelities,
            router=self._router,
            choices=self._choices,
            batch_size=max(1, self._batch_size >> halvings),
            prefix_bytes=self._prefix_bytes >> halvings,
        )
