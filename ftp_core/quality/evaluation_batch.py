"""Examples as one batch: their prompts, their right answers behind them, and their choices.

Shapes: B rows, L tokens of a row, R choices, I multiple-choice items.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ftp_core.text.encoding import (
    ContinuationBatch,
    EncodedExample,
    PromptBatch,
    answer_batch,
    choice_batch,
    choice_lengths,
    pad_right,
    unscored_tokens,
)


@dataclass(frozen=True)
class EvaluationBatch:
    """Prompts and continuations of some examples.

    Each example's prompt is one row, and a second one where longer texts that continue it are embedded otherwise (see
    `ftp_core.skipping.rotary`): no continuation may change another one's score.

    Attributes:
        prompts: Prompts `[B, L]`.
        answers: The right continuation of each example, in order.
        choices: Every choice of the multiple-choice items; None if there are none.
        choice_items: Index of the example of each choice `[R]`.
        has_choices: True for each multiple-choice item.
        right_choice: Index of the right choice of each multiple-choice item `[I]`.
        choice_lengths: Divisors of log-likelihoods for `acc_norm` `[R]`.
        unscored: Tokens at the beginning of each choice that are not scored `[R]`.
    """

    prompts: PromptBatch
    answers: ContinuationBatch
    choices: ContinuationBatch | None
    choice_items: Tensor
    has_choices: tuple[bool, ...]
    right_choice: Tensor
    choice_lengths: Tensor
    unscored: Tensor

    @classmethod
    def of(
        cls, examples: Sequence[EncodedExample], regime: Callable[[int], int], device: torch.device
    ) -> EvaluationBatch:
        """A batch of examples; `regime` is `SkippingModel.length_regime`."""
        # Tokens that are read of each text, by example and regime: as many as of the longest such.
        texts: dict[tuple[int, int], int] = {}

        def rows_of(continuations: ContinuationBatch) -> ContinuationBatch:
            rows = []
            lengths = (continuations.ids >= 0).sum(1).tolist()
            for item, length in zip(continuations.rows.tolist(), lengths, strict=True):
                n_read = len(examples[item].prompt) + length - 1
                key = (item, regime(n_read))
                texts[key] = max(texts.get(key, 0), n_read)
                rows.append(list(texts).index(key))
            return ContinuationBatch(continuations.ids, torch.tensor(rows))

        answers, choices = rows_of(answer_batch(examples)), choice_batch(examples)
        items = torch.zeros(0, dtype=torch.long) if choices is None else choices.rows
        choices = None if choices is None else rows_of(choices)
        prompts = [examples[item].prompt for item, _ in texts]
        return cls(
            PromptBatch(
                pad_right(prompts, 0), torch.tensor(list(map(len, prompts))), torch.tensor(list(texts.values()))
            ).to(device),
            answers.to(device),
            None if choices is None else choices.to(device),
            items.to(device),
            tuple(example.has_choices for example in examples),
            torch.tensor([example.answer for example in examples if example.has_choices], device=device),
            torch.tensor(choice_lengths(examples), device=device),
            torch.tensor(unscored_tokens(examples), device=device),
        )
