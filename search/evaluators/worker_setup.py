"""Sends the model and the search set to workers."""

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
    """Makes evaluators of one model and one search set, with the arguments of `LocalEvaluator`.

    Made in the process that has the model, and pickled to the workers, whose weights lie in the shared memory of the
    pickle's arrays (see `SharedModel`).

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
        """See `WorkerSetup.start`; halves the memory for shared work, too."""
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
            prefix_bytes=_held_on(model.device, self._prefix_bytes) >> halvings,
        )


def _held_on(device: torch.device, prefix_bytes: int) -> int:
    """Memory for shared work, which on a GPU is a part of what the model leaves."""
    if device.type != "cuda":
        return prefix_bytes
    return min(prefix_bytes, torch.cuda.mem_get_info(device)[0] // 4)
