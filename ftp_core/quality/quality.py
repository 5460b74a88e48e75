"""Quality of a pruned model: KL to the dense one, perplexity, and accuracy on multiple choice.

Shapes: B rows, C tokens of a continuation, D hidden width, I multiple-choice items, R choices, T completion tokens of
all rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from typing import Any, Protocol

import torch
from torch import Tensor

from ftp_core.errors import DataError, ModelError
from ftp_core.loading.identity import model_identity, same_model
from ftp_core.quality.batch_figures import BatchFigures, batch_figures
from ftp_core.quality.evaluation_batch import EvaluationBatch
from ftp_core.quality.intervals import bootstrap_interval, wilson_interval
from ftp_core.routers import Router, ScoringRouter, StaticRouter
from ftp_core.routers.protocol import scored_once
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.fitted_keys import keys_fitted
from ftp_core.skipping.head import Head
from ftp_core.skipping.prefixes import PrefixStore, Scope
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import (
    IGNORED,
    ContinuationBatch,
    EncodedExample,
    PromptBatch,
    check_readable,
    encoded_fingerprint,
    length_order,
)


@dataclass(frozen=True)
class ItemQuality:
    """Quality of a pruned model on one example.

    Attributes:
        kl: Mean KL(dense || pruned) per completion token, nats.
        n_tokens: Tokens of the completion.
        choice: Index of the choice with the highest summed log-likelihood; None if it is no multiple choice.
        right: True if that is the right one; None if it is no multiple choice.
    """

    kl: float
    n_tokens: int
    choice: int | None
    right: bool | None


@dataclass(frozen=True)
class Quality:
    """Quality of a pruned model on a set of examples.

    Attributes:
        kl: Mean KL(dense || pruned) per completion token, nats.
        perplexity: exp of the mean negative log-likelihood per completion token.
        accuracy: Share of multiple-choice items whose right choice has the highest summed log-likelihood (lm-eval's
            `acc`); None without such items, or if choices were not scored.
        accuracy_interval: 95 % Wilson interval of `accuracy`.
        accuracy_norm: The same with log-likelihoods divided by the choices' characters (lm-eval's `acc_norm`).
        accuracy_norm_interval: 95 % Wilson interval of `accuracy_norm`.
        n_items: Examples evaluated.
        n_tokens: Completion tokens evaluated.
        n_choice_items: Multiple-choice items scored for `accuracy`.
        kl_interval: 95 % bootstrap interval of `kl` over examples; None if not asked for.
        perplexity_interval: The same of `perplexity`.
        items: Quality on each example, in the given order; empty if not asked for.
    """

    kl: float
    perplexity: float
    accuracy: float | None
    accuracy_interval: tuple[float, float] | None
    accuracy_norm: float | None
    accuracy_norm_interval: tuple[float, float] | None
    n_items: int
    n_tokens: int
    n_choice_items: int
    kl_interval: tuple[float, float] | None = None
    perplexity_interval: tuple[float, float] | None = None
    items: tuple[ItemQuality, ...] = ()


# Rounding makes the KL of equal distributions a hair negative, no further below zero than this.
_ROUNDING = 1e-6
# exp of more than this is no float.
_HIGHEST_EXPONENT = 700.0


class Comparable(Protocol):
    """A model that was pruned in any way, as it is compared with the dense one."""

    @property
    def dense(self) -> SkippingModel:
        """The dense model that it was made from."""

    @property
    def head(self) -> Head:
        """The head that computes its logits."""

    def prefill(self, prompts: PromptBatch) -> Any:
        """Runs prompts `[B, L]`, padded right, before anything that follows them is known."""

    def continuation_hidden(self, prefill: Any, continuations: ContinuationBatch) -> Tensor:
        """Computes final hidden states from which each token of continuations is predicted `[R, C, D]`.

        Args:
            prefill: What `prefill` returned, which several continuations may follow.
            continuations: Continuations of its prompts.
        """


class QualitySet:
    """Examples with the dense model's answers to them, computed once and compared with many pruned variants.

    The answers are kept as final hidden states, D numbers a token, because V of them would fill the memory.

    Args:
        model: The model, which is its own dense reference.
        examples: Examples to evaluate on.
        batch_size: Prompts in a batch.
        on_batch: Called after each batch of the dense pass.

    Attributes:
        model: The model.
        n_items: Number of examples.
        n_batches: Number of batches.
        fingerprint: SHA-256 over the examples in their order.

    Raises:
        DataError: There is no example, or one is not encoded, longer than the model's context, or has a token that the
            model does not know.
        ModelError: The model cannot skip tokens as it is.
    """

    def __init__(
        self,
        model: SkippingModel,
        examples: Sequence[EncodedExample],
        batch_size: int = 16,
        on_batch: Callable[[], None] = lambda: None,
    ) -> None:
        if not isinstance(model, SkippingModel):
            raise ModelError(
                f"A {type(model).__name__} was given to evaluate, but it must be a SkippingModel: make one with "
                "ftp_core.SkippingModel(dense), or take `.skipping` of what ftp_core.load_model returns."
            )
        if not examples:
            raise DataError("There is nothing to evaluate quality on: give at least one example.")
        if batch_size < 1:
            raise DataError(f"batch_size is {batch_size}, but must be at least 1: the prompts of a batch.")
        check_readable(examples, model.context, model.model.config.vocab_size)
        self.model = model
        self.n_items = len(examples)
        self.fingerprint = encoded_fingerprint(examples)
        self._identity = object()
        self._batches: list[EvaluationBatch] = []
        self._dense_hidden: list[Tensor] = []
        dense, router = SparsitySchedule.uniform(0.0, model.n_blocks), StaticRouter()
        self._order = length_order(examples)
        for start in range(0, len(examples), batch_size):
            group = [examples[place] for place in self._order[start : start + batch_size]]
            batch = EvaluationBatch.of(group, model.length_regime, model.device)
            hidden_BCD = model.continuation_hidden(model.prefill(batch.prompts, dense, router), batch.answers)
            self._batches.append(batch)
            self._dense_hidden.append(hidden_BCD[batch.answers.ids != IGNORED])
            on_batch()
        self.n_batches = len(self._batches)

    @cached_property
    def model_identity(self) -> str:
        """Identity of the model (`ftp_core.loading.identity`)."""
        return model_identity(self.model.model)

    def check_model(self, model: SkippingModel) -> None:
        """Raise `ModelError` unless a model, perhaps loaded again, is the one that the answers are of."""
        if model.keep_first != self.model.keep_first:
            raise ModelError(
                f"The quality set's model protects the first {self.model.keep_first} tokens of prompts, but this one "
                f"{model.keep_first}: make a QualitySet of this one."
            )
        if model.model is self.model.model:
            return
        found = model_identity(model.model)
        if not same_model(found, self.model_identity, model.model.dtype):
            raise ModelError(
                f"The quality set holds the answers of another model (identity {self.model_identity}) than this one "
                f"({found}): make a QualitySet of this model."
            )
        if model.device != self.model.device:
            raise ModelError(
                f"The quality set's model is on {self.model.device}, but this one on {model.device}: make a QualitySet "
                "of this one."
            )

    def scope(self, router: Router, choices: bool = False) -> Scope:
        """Key of this set's states in a store of prefixes, see `PrefixStore.longest`."""
        return Scope(self._identity, router, choices)

    @torch.inference_mode()
    def evaluate(
        self,
        schedule: Sequence[float],
        router: Router,
        choices: bool = False,
        intervals: bool = False,
        prefixes: PrefixStore | None = None,
        on_batch: Callable[[], None] = lambda: None,
        items: bool = False,
    ) -> Quality:
        """Compare the model under a schedule and router with the dense one.

        Logits are computed for some tokens and words at a time, so that memory does not grow with the set or the
        vocabulary, and compared in float32 at least (`ftp_core.quality.divergence`).

        Args:
            schedule: One sparsity per block.
            router: The router; must not change as long as `prefixes` is used.
            choices: Score every choice too, for the accuracies.
            intervals: Draw bootstrap intervals of KL and perplexity.
            prefixes: Store of states that schedules with the same beginning share; the figures are the same bit for
                bit.
            on_batch: Called after each batch, `n_batches` times.
            items: Give the quality on each example, too.

        Raises:
            ScheduleError: The schedule has another length than the model has blocks, or a value outside the range.
            ModelError: The router was trained for another model or made for another shape, or calibrated for another
                schedule.
        """
        store = PrefixStore(0) if prefixes is None else prefixes
        return self._quality(self._run(schedule, router, choices, store, on_batch), choices, intervals, items)

    @torch.inference_mode()
    def evaluate_pruned(
        self,
        pruned: Comparable,
        choices: bool = False,
        intervals: bool = False,
        on_batch: Callable[[], None] = lambda: None,
        items: bool = False,
    ) -> Quality:
        """Compare a model that was pruned in any way with the dense one, on the same items by the same figures.

        Args:
            pruned: The pruned model.
            choices: As `evaluate` has it.
            intervals: As `evaluate` has it.
            on_batch: As `evaluate` has it.
            items: As `evaluate` has it.

        Raises:
            ModelError: It was made from another model than the one that the set holds the answers of, or has another
                vocabulary.
        """
        self.check_model(pruned.dense)
        if pruned.head.vocabulary != self.model.head.vocabulary:
            raise ModelError(
                f"The pruned model has {pruned.head.vocabulary} words, but the dense one {self.model.head.vocabulary}: "
                "compare models of one vocabulary."
            )
        found = []
        for batch, dense_hidden in zip(self._batches, self._dense_hidden, strict=True):
            prefill = pruned.prefill(batch.prompts)
            answers_BCD = pruned.continuation_hidden(prefill, batch.answers)
            choices_RCD = None
            if choices and batch.choices is not None:
                choices_RCD = pruned.continuation_hidden(prefill, batch.choices)
            found.append(batch_figures(batch, dense_hidden, self.model.head, pruned.head, answers_BCD, choices_RCD))
            on_batch()
        return self._quality(found, choices, intervals, items)

    def _quality(self, found: Sequence[BatchFigures], choices: bool, intervals: bool, items: bool) -> Quality:
        """Quality on all examples, by figures of every batch."""
        kl_sums, nll_sums = torch.cat([one.kl for one in found]), torch.cat([one.nll for one in found])
        n_tokens, right = torch.cat([one.n_tokens for one in found]), torch.cat([one.right for one in found])
        accuracy, accuracy_interval = _share(right)
        accuracy_norm, accuracy_norm_interval = _share(torch.cat([one.right_norm for one in found]))
        nll_interval = bootstrap_interval(nll_sums, n_tokens) if intervals else None
        return Quality(
            kl=_mean_kl(float(kl_sums.sum() / n_tokens.sum())),
            perplexity=_exp(float(nll_sums.sum() / n_tokens.sum())),
            accuracy=accuracy,
            accuracy_interval=accuracy_interval,
            accuracy_norm=accuracy_norm,
            accuracy_norm_interval=accuracy_norm_interval,
            n_items=self.n_items,
            n_tokens=int(n_tokens.sum()),
            n_choice_items=len(right),
            kl_interval=bootstrap_interval(kl_sums, n_tokens) if intervals else None,
            perplexity_interval=None if nll_interval is None else (_exp(nll_interval[0]), _exp(nll_interval[1])),
            items=self._items(found, choices) if items else (),
        )

    @torch.inference_mode()
    def per_item(
        self,
        schedule: Sequence[float],
        router: Router,
        on_batch: Callable[[], None] = lambda: None,
        choices: bool = True,
        prefixes: PrefixStore | None = None,
    ) -> list[ItemQuality]:
        """Compare the model under a schedule and router with the dense one on each example, in the given order.

        Args:
            schedule: As `evaluate` has it.
            router: As `evaluate` has it.
            on_batch: Called after each batch, `n_batches` times.
            choices: Score every choice, too; without them no item has a choice.
            prefixes: As `evaluate` has it.

        Raises:
            ScheduleError: As `evaluate` does.
            ModelError: As `evaluate` does.
        """
        store = PrefixStore(0) if prefixes is None else prefixes
        return list(self._items(self._run(schedule, router, choices, store, on_batch), choices))

    def _items(self, found: Sequence[BatchFigures], choices: bool) -> tuple[ItemQuality, ...]:
        """Quality on each example, in the given order, by figures of every batch."""
        items = []
        for batch, of_batch in zip(self._batches, found, strict=True):
            answers = zip(of_batch.choice.tolist(), of_batch.right.tolist(), strict=True)
            kls, n_tokens = (of_batch.kl / of_batch.n_tokens).tolist(), of_batch.n_tokens.tolist()
            for kl, n, has_choices in zip(kls, n_tokens, batch.has_choices, strict=True):
                choice, right = next(answers) if choices and has_choices else (None, None)
                items.append(ItemQuality(_mean_kl(kl), n, choice, right))
        return tuple(item for _, item in sorted(zip(self._order, items, strict=True), key=itemgetter(0)))

    def _run(
        self,
        schedule: Sequence[float],
        router: Router,
        choices: bool,
        prefixes: PrefixStore,
        on_batch: Callable[[], None],
    ) -> list[BatchFigures]:
        schedule, head = self.model.checked(schedule), self.model.head
        self._check(schedule, router)
        found = []
        node_bytes = self._state_bytes(choices, scored_once(router))
        with (
            keys_fitted(self.model, schedule),
            prefixes.path(self.scope(router, choices), schedule, self.n_items, node_bytes) as path,
        ):
            for batch, dense_hidden in zip(self._batches, self._dense_hidden, strict=True):
                of_prompts, of_answers, of_choices = path.passages()
                prefill = self.model.prefill(batch.prompts, schedule, router, of_prompts)
                hidden_BCD = self.model.continuation_hidden(prefill, batch.answers, of_answers)
                choices_RCD = None
                if choices and batch.choices is not None:
                    choices_RCD = self.model.continuation_hidden(prefill, batch.choices, of_choices)
                found.append(batch_figures(batch, dense_hidden, head, head, hidden_BCD, choices_RCD))
                on_batch()
        return found

    def _check(self, schedule: SparsitySchedule, router: Router) -> None:
        """Raise `ModelError` unless the router is for this model and the schedule."""
        if not isinstance(router, ScoringRouter):
            return
        model, trained_for = self.model.model, router.trained_for
        if trained_for is not None and not same_model(trained_for, self.model_identity, model.dtype):
            raise ModelError(
                f"The router was trained for another model (identity {trained_for}) than the one that the quality set "
                f"holds the answers of ({self.model_identity}): distil one for it, or make a QualitySet of its model."
            )
        router.check_model(self.model.n_blocks, model.config.hidden_size)
        router.check_schedule(schedule)

    def _state_bytes(self, choices: bool, n_scores: int = 0) -> int:
        """Memory of the states behind one block: hidden states, and the prompts' attention and scores in float32."""
        n_prompt = sum(batch.prompts.ids.numel() for batch in self._batches)
        continuations = [batch.answers for batch in self._batches]
        if choices:
            continuations += [batch.choices for batch in self._batches if batch.choices is not None]
        n_tokens = n_prompt + sum(batch.ids[:, 1:].numel() for batch in continuations)
        hidden = self._dense_hidden[0]
        return n_tokens * hidden.shape[-1] * hidden.element_size() + 4 * n_prompt * (1 + n_scores)


def _share(right_I: Tensor) -> tuple[float | None, tuple[float, float] | None]:
    """Share of right decisions, with its interval; None without any."""
    if not len(right_I):
        return None, None
    return float(right_I.float().mean()), wilson_interval(int(right_I.sum()), len(right_I))


def _mean_kl(value: float) -> float:
    return 0.0 if -_ROUNDING < value < 0 else value


def _exp(value: float) -> float:
    return math.exp(min(value, _HIGHEST_EXPONENT))
