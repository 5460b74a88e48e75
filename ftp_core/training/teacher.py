"""The dense model's predictions of the training examples, computed once.

Shapes: D hidden width, T completion tokens of all rows, J likeliest successors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ftp_core.quality.divergence import likeliest
from ftp_core.routers import StaticRouter
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import IGNORED, EncodedExample, answer_batch, prompt_batch
from ftp_core.training.distillation_config import DistillationConfig
from ftp_core.training.gated import TrainingBatch
from ftp_core.training.losses import distillation_loss, top_k_distillation_loss


@dataclass(frozen=True)
class Lesson:
    """A batch with the teacher's predictions: its hidden states, or its likeliest tokens at the loss's temperature."""

    batch: TrainingBatch  # prompts with completions
    hidden: Tensor | None  # the dense model's final hidden states at the completions' tokens `[T, D]`
    log_probs: Tensor | None = None  # log-probabilities of the likeliest tokens `[T, J]`
    tokens: Tensor | None = None  # ids of these tokens `[T, J]`


class Teacher:
    """The dense model as a teacher.

    Args:
        model: The model.
        config: Temperature, and number of the likeliest tokens to keep.
    """

    def __init__(self, model: SkippingModel, config: DistillationConfig) -> None:
        self._model = model
        self._config = config
        self._dense = SparsitySchedule.uniform(0.0, model.n_blocks)

    def lesson(self, examples: Sequence[EncodedExample]) -> Lesson:
        """A batch of examples with the dense model's predictions."""
        model, top_k = self._model, self._config.teacher_top_k
        batch = TrainingBatch.of(examples, model.device)
        hidden_TD = self.hidden(examples)
        if top_k is None:
            return Lesson(batch, hidden_TD)
        n_words = min(top_k, model.head.vocabulary - 1)
        return Lesson(batch, None, *likeliest(model.head, hidden_TD, n_words, self._config.temperature))

    def hidden(self, examples: Sequence[EncodedExample]) -> Tensor:
        """The dense model's final hidden states at every completion token of a batch `[T, D]`, row by row."""
        answers = answer_batch(examples).to(self._model.device)
        prefill = self._model.prefill(prompt_batch(examples), self._dense, StaticRouter())
        hidden_RCD = self._model.continuation_hidden(prefill, answers)
        # A copy, because autograd refuses tensors made in inference mode.
        return hidden_RCD[answers.ids != IGNORED].clone()

    def loss(self, hidden_TD: Tensor, lesson: Lesson) -> Tensor:
        """The distillation loss of the pruned model's final hidden states at the completions' tokens."""
        head, temperature = self._model.head, self._config.temperature
        # Autocast may compute the hidden states, but not the loss.
        with torch.autocast(hidden_TD.device.type, enabled=False):
            if lesson.hidden is not None:
                return distillation_loss(head, hidden_TD, lesson.hidden, temperature)
            assert lesson.log_probs is not None
            assert lesson.tokens is not None
            return top_k_distillation_loss(head, hidden_TD, lesson.log_probs, lesson.tokens, temperature)
