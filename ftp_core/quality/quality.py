"""How much worse a pruned model is than the dense one: KL, perplexity, and accuracy on multiple choice."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter

import torch
from torch import Tensor

from ftp_core.errors import DataError, ModelError
from ftp_core.loading.identity import model_identity, same_model
from ftp_core.quality.evaluation_batch import EvaluationBatch
from ftp_core.quality.intervals import bootstrap_interval, wilson_interval
from ftp_core.routers import Router, ScoringRouter, StaticRouter
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.prefixes import Passage, PrefixStore, Scope
from ftp_core.skipping.skipping_model import Prefill, SkippingModel
from ftp_core.text.encoding import (
    IGNORED,
    ContinuationBatch,
    EncodedExample,
    check_readable,
    encoded_fingerprint,
    length_order,
)


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
        perplexity_interval: Likewise of `perplexity`.
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


@dataclass(frozen=True)
class ItemQuality:
    """Quality of a pruned model on one example.

    Attributes:
        kl: Mean KL(dense || pruned) per completion token, nats.
        n_tokens: Tokens of the completion.
        choice: Index of the choice with the highest summed log-likelihood; None if it is no multiple choice.
        right: Whether that is the right one; None if it is no multiple choice.
    """

    kl: float
    n_tokens: int
    choice: int | None
    right: bool | None


# Rounding makes the KL of equal distributions a hair negative, no further below zero than this.
_ROUNDING = 1e-6
# exp of more than this is no float.
_HIGHEST_EXPONENT = 700.0
# Numbers of one table of logits: 32 MB in float32.
_LOGITS_AT_ONCE = 2**23


@dataclass(frozen=True)
class _Found:
    """What a pruned model does on a batch.

    Attributes:
        kl: Sum of KL(dense || pruned) over each answer's tokens `[B]`.
        nll: Likewise of the negative log-likelihood.
        n_tokens: Tokens of each answer `[B]`.
        choice: Index of the likeliest choice of each multiple-choice item `[M]`; empty if choices were not scored.
        right: Whether it is the right one.
        right_norm: Whether the likeliest choice per character is.
    """

    kl: Tensor
    nll: Tensor
    n_tokens: Tensor
    choice: Tensor
    right: Tensor
    right_norm: Tensor


def _divergence(log_probs: Tensor, dense: Tensor) -> Tensor:
    """KL(dense || pruned) of each token `[n]`, from log-probabilities `[n, V]`."""
    # What the dense model rules out adds nothing, though the pruned one may rule it out too (0 x (inf - inf)).
    return torch.where(dense == -math.inf, 0.0, dense.exp() * (dense - log_probs)).sum(-1)


class QualitySet:
    """Examples with the dense model's answers to them, computed once and compared with many pruned variants.

    The answers are kept as final hidden states, D numbers a token, because V of them would fill the memory.

    Args:
        model: The model, which is its own dense reference.
        examples: What to evaluate on.
        batch_size: Prompts in a batch.
        on_batch: Called after each batch of the dense pass.

    Attributes:
        model: The model, with whose answers pruned variants of it are compared.
        n_items: How many examples.
        n_batches: How many batches they are run in.
        fingerprint: SHA-256 over the examples in their order: the same examples have the same one everywhere.

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
            hidden = model.continuation_hidden(model.prefill(batch.prompts, dense, router), batch.answers)
            self._batches.append(batch)
            self._dense_hidden.append(hidden[batch.answers.ids != IGNORED])
            on_batch()
        self.n_batches = len(self._batches)

    @cached_property
    def model_identity(self) -> str:
        """What the model is (`ftp_core.loading.identity`), wherever it was loaded."""
        return model_identity(self.model.model)

    def check_model(self, model: SkippingModel) -> None:
        """Raise `ModelError` unless this model is the one that the answers are of, loaded again or not.

        Args:
            model: The one that the set shall be used for.
        """
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
        """What `evaluate` finds in a store of prefixes: `store.longest(scope, schedule)` says how many blocks of it."""
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
    ) -> Quality:
        """Compare the model under a schedule and router with the dense one.

        Logits are computed for some tokens at a time, so that memory does not grow with the set or the vocabulary.

        Args:
            schedule: One sparsity per block.
            router: Names the kept tokens.
            choices: Whether to score every choice too, for the accuracies.
            intervals: Whether to draw bootstrap intervals of KL and perplexity.
            prefixes: States that schedules leave behind and that others with the same beginning go on from; the figures
                are the same bit for bit. The router must not change as long as it is used.
            on_batch: Called after each batch, `n_batches` times.

        Raises:
            ScheduleError: The schedule has another length than the model has blocks, or a value outside the range.
            ModelError: The router was trained for another model or made for another shape, or calibrated for another
                schedule.
        """
        found = self._run(schedule, router, choices, PrefixStore(0) if prefixes is None else prefixes, on_batch)
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
        )

    @torch.inference_mode()
    def per_item(
        self, schedule: Sequence[float], router: Router, on_batch: Callable[[], None] = lambda: None
    ) -> list[ItemQuality]:
        """Compare the model under a schedule and router with the dense one on each example.

        Args:
            schedule: One sparsity per block.
            router: Names the kept tokens.
            on_batch: See `evaluate`.

        Returns:
            One for each example, in the order in which they were given.

        Raises:
            ScheduleError: As `evaluate` does.
            ModelError: As `evaluate` does.
        """
        items = []
        for batch, found in zip(
            self._batches, self._run(schedule, router, True, PrefixStore(0), on_batch), strict=True
        ):
            answers = zip(found.choice.tolist(), found.right.tolist(), strict=True)
            kls, n_tokens = (found.kl / found.n_tokens).tolist(), found.n_tokens.tolist()
            for kl, n, has_choices in zip(kls, n_tokens, batch.has_choices, strict=True):
                choice, right = next(answers) if has_choices else (None, None)
                items.append(ItemQuality(_mean_kl(kl), n, choice, right))
        return [item for _, item in sorted(zip(self._order, items, strict=True), key=itemgetter(0))]

    def _run(
        self,
        schedule: Sequence[float],
        router: Router,
        choices: bool,
        prefixes: PrefixStore,
        on_batch: Callable[[], None],
    ) -> list[_Found]:
        """What the model does on each batch; see `evaluate`."""
        schedule = self.model.checked(schedule)
        self._check(schedule, router)
        found = []
        with prefixes.path(self.scope(router, choices), schedule, self.n_items, self._state_bytes(choices)) as path:
            for batch, dense_hidden in zip(self._batches, self._dense_hidden, strict=True):
                of_prompts, of_answers, of_choices = path.passages()
                prefill = self.model.prefill(batch.prompts, schedule, router, of_prompts)
                hidden = self.model.continuation_hidden(prefill, batch.answers, of_answers)
                real = batch.answers.ids != IGNORED
                kl, nll = self._compare(hidden[real], dense_hidden, batch.answers.ids[real])
                choice = right = right_norm = torch.zeros(0, dtype=torch.long, device=real.device)
                if choices and batch.choices is not None:
                    likelihoods, items = self._likelihoods(prefill, batch.choices, of_choices), batch.choice_items
                    choice = _likeliest(likelihoods, items)
                    right = choice == batch.right_choice
                    right_norm = _likeliest(likelihoods / batch.choice_lengths, items) == batch.right_choice
                found.append(_Found(_row_sums(kl, real), _row_sums(nll, real), real.sum(1), choice, right, right_norm))
                on_batch()
        return found

    def _check(self, schedule: SparsitySchedule, router: Router) -> None:
        """Raise an error unless the router is this model's, and for the schedule; quick: every evaluation asks it."""
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

    def _state_bytes(self, choices: bool) -> int:
        """Memory that the states behind one block take: hidden states, and the prompts' attention in float32."""
        n_prompt = sum(batch.prompts.ids.numel() for batch in self._batches)
        continuations = [batch.answers for batch in self._batches]
        if choices:
            continuations += [batch.choices for batch in self._batches if batch.choices is not None]
        n_tokens = n_prompt + sum(batch.ids[:, 1:].numel() for batch in continuations)
        hidden = self._dense_hidden[0]
        return n_tokens * hidden.shape[-1] * hidden.element_size() + 4 * n_prompt

    def _compare(self, final_hidden: Tensor, dense_hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """KL to the dense model, and negative log-likelihood, of each answer token `[n]`."""
        kls, nlls = [], []
        for part, dense, target in zip(
            self._parts(final_hidden), self._parts(dense_hidden), self._parts(targets), strict=True
        ):
            log_probs = self._log_probs(part)
            kls.append(_divergence(log_probs, self._log_probs(dense)))
            nlls.append(-log_probs.gather(-1, target[:, None])[:, 0])
        return torch.cat(kls), torch.cat(nlls)

    def _parts(self, of_tokens: Tensor) -> tuple[Tensor, ...]:
        parts: tuple[Tensor, ...] = of_tokens.split(max(1, _LOGITS_AT_ONCE // self.model.model.config.vocab_size))
        return parts

    def _log_probs(self, final_hidden: Tensor) -> Tensor:
        return self.model.logits(final_hidden).float().log_softmax(-1)

    def _likelihoods(self, prefill: Prefill, choices: ContinuationBatch, passage: Passage) -> Tensor:
        """Summed log-likelihood of each choice `[R]`."""
        hidden = self.model.continuation_hidden(prefill, choices, passage)
        real = choices.ids != IGNORED
        picked = [
            self._log_probs(part).gather(-1, target[:, None])[:, 0]
            for part, target in zip(self._parts(hidden[real]), self._parts(choices.ids[real]), strict=True)
        ]
        return _row_sums(torch.cat(picked), real)


def _row_sums(values: Tensor, real: Tensor) -> Tensor:
    """Sums by row `[B]` of values `[n]` that stand where `real` is True `[B, C]`."""
    table = torch.zeros(real.shape, dtype=values.dtype, device=values.device)
    return table.masked_scatter_(real, values).sum(-1)


def _share(right: Tensor) -> tuple[float | None, tuple[float, float] | None]:
    """How many of some decisions are right, with their interval; None without any."""
    if not len(right):
        return None, None
    return float(right.float().mean()), wilson_interval(int(right.sum()), len(right))


def _mean_kl(value: float) -> float:
    return 0.0 if -_ROUNDING < value < 0 else value


def _exp(value: float) -> float:
    return math.exp(min(value, _HIGHEST_EXPONENT))


def _likeliest(likelihoods: Tensor, items: Tensor) -> Tensor:
    """Index of the likeliest choice of each item that has some; the first of equals.

    Args:
        likelihoods: `[R]`.
        items: Which item each is a choice of, ascending `[R]`.
    """
    _, group, counts = items.unique_consecutive(return_inverse=True, return_counts=True)
    table = likelihoods.new_full((len(counts), int(counts.max())), -torch.inf)
    within = torch.arange(len(items), device=items.device) - (counts.cumsum(0) - counts)[group]
    table[group, within] = likelihoods
    return table.argmax(-1)
