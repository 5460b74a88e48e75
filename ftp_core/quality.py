"""How much worse a pruned model is than the dense one: KL, perplexity, and accuracy on multiple choice."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ftp_core.encoding import (
    IGNORED,
    ContinuationBatch,
    EncodedExample,
    PromptBatch,
    answer_batch,
    check_readable,
    choice_batch,
    encoded_fingerprint,
    length_sorted_batches,
    prompt_batch,
)
from ftp_core.errors import DataError, ModelError
from ftp_core.identity import model_identity, same_model
from ftp_core.prefixes import Passage, PrefixStore, Scope
from ftp_core.routers import Router, ScoringRouter, StaticRouter
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping_model import Prefill, SkippingModel


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


def wilson_interval(right: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval of a share (Wilson 1927): right at 0 and 1, where the normal one has no width."""
    share, extra = right / n, z * z / n
    centre = (share + extra / 2) / (1 + extra)
    half = z * math.sqrt(share * (1 - share) / n + extra / (4 * n)) / (1 + extra)
    # At the ends rounding would leave the share itself outside by an ulp.
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


# Rounding makes the KL of equal distributions a hair negative, no further below zero than this.
_ROUNDING = 1e-6
# exp of more than this is no float.
_HIGHEST_EXPONENT = 700.0
# Numbers of one table of logits: 32 MB in float32.
_LOGITS_AT_ONCE = 2**23
# Examples drawn at a time for bootstrap intervals: tables of 8 MB.
_DRAWN_AT_ONCE = 2**20


@dataclass(frozen=True)
class _Batch:
    prompts: PromptBatch
    answers: ContinuationBatch
    choices: ContinuationBatch | None
    right_choice: Tensor
    choice_lengths: Tensor
    dense_hidden: Tensor


def _divergence(log_probs: Tensor, dense: Tensor) -> Tensor:
    """KL(dense || pruned) of each token `[n]`, from log-probabilities `[n, V]`."""
    # What the dense model rules out adds nothing, though the pruned one may rule it out too (0 x (inf - inf)).
    return torch.where(dense == -math.inf, 0.0, dense.exp() * (dense - log_probs)).sum(-1)


def _choice_lengths(examples: Sequence[EncodedExample]) -> list[int]:
    """By what to divide the log-likelihood of every choice: its characters, or its tokens where they are not known."""
    return [
        length
        for example in examples
        if example.has_choices
        for length in (example.choice_lengths or map(len, example.continuations))
    ]


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
        self._batches: list[_Batch] = []
        dense, router = SparsitySchedule.uniform(0.0, model.n_blocks), StaticRouter()
        for group in length_sorted_batches(examples, batch_size):
            prompts, answers = prompt_batch(group).to(model.device), answer_batch(group).to(model.device)
            choices = choice_batch(group)
            hidden = model.continuation_hidden(model.prefill(prompts, dense, router), answers)
            self._batches.append(
                _Batch(
                    prompts,
                    answers,
                    None if choices is None else choices.to(model.device),
                    torch.tensor([example.answer for example in group if example.has_choices], device=model.device),
                    torch.tensor(_choice_lengths(group), device=model.device),
                    hidden[answers.ids != IGNORED],
                )
            )
            on_batch()

    @cached_property
    def model_identity(self) -> str:
        """What the model is (`ftp_core.identity`), wherever it was loaded."""
        return model_identity(self.model.model)

    def check_model(self, model: SkippingModel) -> None:
        """Raise `ModelError` unless this model is the one that the answers are of, loaded again or not.

        Args:
            model: The one that the set shall be used for.
        """
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

        Raises:
            ScheduleError: The schedule has another length than the model has blocks, or a value outside the range.
            ModelError: The router was trained for another model or made for another shape, or calibrated for another
                schedule.
        """
        prefixes = PrefixStore(0) if prefixes is None else prefixes
        schedule = schedule if isinstance(schedule, SparsitySchedule) else SparsitySchedule(schedule)
        self._check(schedule, router)
        kls, nlls, counts = [], [], []
        rights: list[Tensor] = []
        rights_norm: list[Tensor] = []
        with prefixes.path(self.scope(router, choices), schedule, self.n_items, self._state_bytes(choices)) as path:
            for batch in self._batches:
                of_prompts, of_answers, of_choices = path.passages()
                prefill = self.model.prefill(batch.prompts, schedule, router, of_prompts)
                hidden = self.model.continuation_hidden(prefill, batch.answers, of_answers)
                real = batch.answers.ids != IGNORED
                kl, nll = self._compare(hidden[real], batch)
                kls.append(_row_sums(kl, real))
                nlls.append(_row_sums(nll, real))
                counts.append(real.sum(1))
                if choices and batch.choices is not None:
                    likelihoods = self._likelihoods(prefill, batch.choices, of_choices)
                    rights.append(_likeliest(likelihoods, batch.choices.rows) == batch.right_choice)
                    per_character = likelihoods / batch.choice_lengths
                    rights_norm.append(_likeliest(per_character, batch.choices.rows) == batch.right_choice)
        kl_sums, nll_sums, n_tokens = torch.cat(kls), torch.cat(nlls), torch.cat(counts)
        mean_kl = float(kl_sums.sum() / n_tokens.sum())
        accuracy, accuracy_interval = _share(rights)
        accuracy_norm, accuracy_norm_interval = _share(rights_norm)
        nll_interval = bootstrap_interval(nll_sums, n_tokens) if intervals else None
        return Quality(
            kl=0.0 if -_ROUNDING < mean_kl < 0 else mean_kl,
            perplexity=_exp(float(nll_sums.sum() / n_tokens.sum())),
            accuracy=accuracy,
            accuracy_interval=accuracy_interval,
            accuracy_norm=accuracy_norm,
            accuracy_norm_interval=accuracy_norm_interval,
            n_items=self.n_items,
            n_tokens=int(n_tokens.sum()),
            n_choice_items=sum(map(len, rights)),
            kl_interval=bootstrap_interval(kl_sums, n_tokens) if intervals else None,
            perplexity_interval=None if nll_interval is None else (_exp(nll_interval[0]), _exp(nll_interval[1])),
        )

    def _check(self, schedule: SparsitySchedule, router: Router) -> None:
        """Raise an error unless schedule and router are this model's; quick, as it is asked in every evaluation."""
        self.model.check(schedule)
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
        hidden = self._batches[0].dense_hidden
        return n_tokens * hidden.shape[-1] * hidden.element_size() + 4 * n_prompt

    def _compare(self, final_hidden: Tensor, batch: _Batch) -> tuple[Tensor, Tensor]:
        """KL to the dense model, and negative log-likelihood, of each answer token `[n]`."""
        targets = batch.answers.ids[batch.answers.ids != IGNORED]
        kls, nlls = [], []
        for part, dense, target in zip(
            self._parts(final_hidden), self._parts(batch.dense_hidden), self._parts(targets), strict=True
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


def _share(rights: Sequence[Tensor]) -> tuple[float | None, tuple[float, float] | None]:
    """How many of some decisions are right, with their interval; None without any."""
    if not rights:
        return None, None
    right = torch.cat(list(rights))
    return float(right.float().mean()), wilson_interval(int(right.sum()), len(right))


def _exp(value: float) -> float:
    return math.exp(min(value, _HIGHEST_EXPONENT))


def bootstrap_interval(sums: Tensor, counts: Tensor, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of a mean over tokens, drawing whole examples (Efron and Tibshirani 1993).

    Tokens of one example go together, so that it is examples that are drawn. Some resamples are drawn at a time, so
    that memory does not grow with their number; the draws are the same however many that are.

    Args:
        sums: Sum over each example's tokens `[n]`.
        counts: Tokens of each example `[n]`.
        resamples: How often to draw n examples.
        seed: Of the draws.
    """
    generator, n = torch.Generator().manual_seed(seed), len(sums)
    sums, counts = sums.double().cpu(), counts.double().cpu()
    at_once, means = max(1, _DRAWN_AT_ONCE // n), []
    for start in range(0, resamples, at_once):
        drawn = torch.randint(n, (min(at_once, resamples - start), n), generator=generator)
        means.append(sums[drawn].sum(1) / counts[drawn].sum(1))
    low, high = torch.cat(means).quantile(torch.tensor([0.025, 0.975], dtype=torch.double)).tolist()
    return low, high


def _likeliest(likelihoods: Tensor, rows: Tensor) -> Tensor:
    """Index of the likeliest continuation of each prompt that has some; the first of equals.

    Args:
        likelihoods: `[R]`.
        rows: Which prompt each continues, ascending `[R]`.
    """
    _, group, counts = rows.unique_consecutive(return_inverse=True, return_counts=True)
    table = likelihoods.new_full((len(counts), int(counts.max())), -torch.inf)
    within = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[group]
    table[group, within] = likelihoods
    return table.argmax(-1)
