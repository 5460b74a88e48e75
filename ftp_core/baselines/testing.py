"""Checks that every comparison method passes, for the tests of those that others write.

Example:
    >>> from ftp_core.baselines.testing import CHECKS, Subject
    >>> def test_my_method():
    ...     subject = Subject(MyMethod, model, examples)
    ...     for check in CHECKS:
    ...         check(subject)

Dimensions: B rows, L tokens of a prompt, C tokens of a continuation.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ftp_core.baselines.protocol import Baseline, Budget, PrunedModel, flops_saved
from ftp_core.cost.memory import block_configs, block_heads, head_width
from ftp_core.loading.identity import model_identity
from ftp_core.quality.quality import QualitySet
from ftp_core.routers import StaticRouter
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import IGNORED, ContinuationBatch, EncodedExample, PromptBatch, pad_right

SHARES = (0.0, 0.2, 0.45)
"""Shares of the dense prefill's operations that are asked for."""
BATCH, LENGTH = 2, 40


class Subject:
    """A method that is checked on a model; what was fitted is kept for all checks.

    Args:
        make: Makes the method.
        model: Small dense model of a family that it can be applied to, with the more blocks, the finer its steps are.
        examples: A few examples, of several tokens each.
        tolerance: Largest difference between the share of operations that is saved and the one that is asked for: half
            of a step of the method on this model.
        closeness: Largest difference of hidden states that are computed in another order.

    Attributes:
        baseline: The method.
    """

    def __init__(
        self,
        make: Callable[[], Baseline],
        model: SkippingModel,
        examples: Sequence[EncodedExample],
        tolerance: float = 0.1,
        closeness: float = 1e-3,
    ) -> None:
        self.baseline, self._make = make(), make
        self.model, self.examples = model, list(examples)
        self.tolerance, self.closeness = tolerance, closeness
        self._before, self._identity = _fingerprint(model), model_identity(model.model)
        self._fitted: dict[float, PrunedModel] = {}

    def fitted(self, share: float) -> PrunedModel:
        """What the method makes for a share of operations to save, with seed 0."""
        if share not in self._fitted:
            self._fitted[share] = self.fitted_anew(share)
        return self._fitted[share]

    def fitted_anew(self, share: float, seed: int = 0) -> PrunedModel:
        """The same, made by another object of the method."""
        return self._make().fit(self.model, self.examples, Budget(share, BATCH, LENGTH), seed)

    @property
    def is_unchanged(self) -> bool:
        """True if the dense model is what it was, bit for bit, and so are its blocks."""
        return _fingerprint(self.model) == self._before and model_identity(self.model.model) == self._identity

    def prompts(self) -> PromptBatch:
        """Prompts of different lengths `[B, L]`."""
        ids = [example.prompt for example in self.examples[:3]]
        lengths = torch.tensor(list(map(len, ids)))
        return PromptBatch(pad_right(ids, 0), lengths, lengths + 8)

    def completions(self, n_rows: int, seed: int = 0) -> ContinuationBatch:
        """A continuation of random tokens for each prompt `[B, C]`."""
        draws = torch.Generator().manual_seed(seed)
        vocabulary = self.model.model.config.vocab_size
        return ContinuationBatch(torch.randint(0, vocabulary, (n_rows, 6), generator=draws), torch.arange(n_rows))


def check_description(subject: Subject) -> None:
    """It says what it is, and records what it needed."""
    baseline, pruned = subject.baseline, subject.fitted(SHARES[1])
    assert re.fullmatch(r"[\w.-]{1,64}", baseline.name), f"a method cannot be called {baseline.name!r}"
    assert pruned.name == baseline.name, f"the model calls itself {pruned.name!r}, the method {baseline.name!r}"
    number = r"arXiv \d{4}\.\d{4,5}|OpenReview \w{8,}"
    assert not baseline.paper or re.search(number, baseline.paper), "the paper has no number at arXiv or OpenReview"
    assert pruned.dense is subject.model, "it does not name the dense model that it was made from"
    assert pruned.sparsity.unit, "the sparsity has no unit"
    assert str(pruned.sparsity)
    preparation = pruned.preparation
    assert preparation.seconds >= 0, "seconds of the preparation are not recorded"
    assert preparation.tokens >= 0
    assert (preparation.trained_parameters > 0) == baseline.trains, "trained parameters contradict `trains`"


def check_dense(subject: Subject) -> None:
    """With nothing to save it is the dense model, bit for bit."""
    model, pruned, prompts = subject.model, subject.fitted(0.0), subject.prompts()
    completions = subject.completions(len(prompts.lengths))
    dense = model.prefill(prompts, SparsitySchedule.uniform(0.0, model.n_blocks), StaticRouter())
    expected = model.continuation_hidden(dense, completions)
    found = pruned.continuation_hidden(pruned.prefill(prompts), completions)
    assert torch.equal(found, expected), "without anything to save, hidden states are others than the dense model's"
    quality = QualitySet(model, subject.examples, 4).evaluate_pruned(pruned, choices=True)
    assert quality.kl == 0, f"without anything to save, KL is {quality.kl}"
    assert flops_saved(pruned, BATCH, LENGTH) == 0, "without anything to save, operations are counted as saved"


def check_savings(subject: Subject) -> None:
    """It saves about as much as is asked, and more where more is asked."""
    saved = [flops_saved(subject.fitted(share), BATCH, LENGTH) for share in SHARES]
    for share, found in zip(SHARES, saved, strict=True):
        assert abs(found - share) <= subject.tolerance, f"{share:.0%} of operations were asked for, saved {found:.1%}"
    assert saved == sorted(saved), f"asked for more, it saves less: {saved}"
    pruned = subject.fitted(SHARES[-1])
    held, most = pruned.kv_bytes(BATCH, LENGTH), _bytes_of_all_keys(subject.model)
    assert 0 <= held <= most, f"keys and values take {held} bytes, but those of all tokens in all blocks {most}"
    assert pruned.flops(BATCH, LENGTH, 4) > pruned.flops(BATCH, LENGTH), "decoded tokens take no operations"
    assert pruned.n_parameters > 0, "it has no parameters"


def check_seed(subject: Subject) -> None:
    """What it makes follows from the seed, and without chance not even from that."""
    prompts, share = subject.prompts(), SHARES[1]
    completions = subject.completions(len(prompts.lengths))

    def hidden(pruned: PrunedModel) -> Tensor:
        return pruned.continuation_hidden(pruned.prefill(prompts), completions)

    first = hidden(subject.fitted(share))
    torch.manual_seed(17)
    before = torch.get_rng_state()
    assert torch.equal(first, hidden(subject.fitted_anew(share))), "the same seed makes another model"
    assert torch.equal(before, torch.get_rng_state()), "the global generator of random numbers was used"
    is_same = torch.equal(first, hidden(subject.fitted_anew(share, seed=8)))
    assert is_same != subject.baseline.has_chance, f"another seed, and `has_chance` is {subject.baseline.has_chance}"


def check_weights(subject: Subject) -> None:
    """The dense model stays as it is, while it is fitted and while the pruned one runs."""
    pruned = subject.fitted(SHARES[-1])
    pruned.continuation_hidden(pruned.prefill(subject.prompts()), subject.completions(3))
    assert subject.is_unchanged, "the dense model has changed"


def check_causality(subject: Subject) -> None:
    """A token of a completion has no say in the predictions of those before it, itself included."""
    pruned, prompts = subject.fitted(SHARES[-1]), subject.prompts()
    one, other = (subject.completions(len(prompts.lengths), seed) for seed in (0, 1))
    prefill = pruned.prefill(prompts)
    expected = pruned.continuation_hidden(prefill, one)
    for place in range(one.ids.shape[1]):
        ids = torch.cat([one.ids[:, :place], other.ids[:, place:]], 1)
        found = pruned.continuation_hidden(prefill, ContinuationBatch(ids, one.rows))
        _close(found[:, : place + 1], expected[:, : place + 1], subject, f"what stands from place {place} on is seen")
    twice = ContinuationBatch(
        torch.cat([one.ids, other.ids.masked_fill(torch.arange(6) > 2, IGNORED)]), torch.cat([one.rows, other.rows])
    )
    found = pruned.continuation_hidden(prefill, twice)[: len(one.ids)]
    _close(found, expected, subject, "continuations of one prompt depend on each other")


def check_rows(subject: Subject) -> None:
    """Rows of a batch do not depend on each other."""
    pruned, prompts = subject.fitted(SHARES[-1]), subject.prompts()
    completions = subject.completions(len(prompts.lengths))
    together = pruned.continuation_hidden(pruned.prefill(prompts), completions)
    for row, length in enumerate(prompts.lengths.tolist()):
        assert prompts.text_lengths is not None
        text = prompts.text_lengths[row : row + 1]
        alone = PromptBatch(prompts.ids[row : row + 1, :length], prompts.lengths[row : row + 1], text)
        of_row = ContinuationBatch(completions.ids[row : row + 1], torch.zeros(1, dtype=torch.long))
        found = pruned.continuation_hidden(pruned.prefill(alone), of_row)
        _close(found[0], together[row], subject, f"row {row} alone differs from itself in a batch")


def check_steps(subject: Subject) -> None:
    """What is measured is what is evaluated: steps predict as prompts and continuations do."""
    pruned = subject.fitted(SHARES[-1])
    draws, vocabulary = torch.Generator().manual_seed(2), subject.model.model.config.vocab_size
    ids = torch.randint(0, vocabulary, (2, 17), generator=draws).to(subject.model.device)
    lengths, completions = torch.full((2,), 17), subject.completions(2)
    prefill = pruned.prefill(PromptBatch(ids, lengths, lengths + 6))
    hidden = pruned.continuation_hidden(prefill, completions)
    everything = slice(0, pruned.head.vocabulary)
    with torch.inference_mode():
        step, cache = pruned.step_of(subject.model.model), None
        inputs: list[Tensor] = [ids, *completions.ids[:, :-1].to(ids.device).split(1, 1)]
        for place, tokens in enumerate(inputs):
            logits, cache = step(tokens, cache)
            expected = pruned.head.logits(hidden[:, place].contiguous(), everything)
            _close(logits.float(), expected, subject, f"step {place} predicts otherwise than the evaluation")


CHECKS: tuple[Callable[[Subject], None], ...] = (
    check_description,
    check_dense,
    check_savings,
    check_seed,
    check_weights,
    check_causality,
    check_rows,
    check_steps,
)
"""All checks; each takes a subject, which may be the same."""


def _close(found: Tensor, expected: Tensor, subject: Subject, what: str) -> None:
    gap = float((found.float() - expected.float()).abs().max())
    assert gap <= subject.closeness, f"{what}: hidden states or logits differ by {gap:.2g}"


def _bytes_of_all_keys(model: SkippingModel) -> int:
    """Bytes of the keys and values of all tokens, of which sliding windows let go now and then only."""
    blocks = zip(block_heads(model), block_configs(model), strict=True)
    n_numbers = sum(2 * heads.key * head_width(config) for heads, config in blocks)
    return int(BATCH * LENGTH * n_numbers * model.model.dtype.itemsize)


def _fingerprint(model: SkippingModel) -> str:
    """SHA-256 of all weights and of which modules there are."""
    digest = hashlib.sha256()
    for name, tensor in model.model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    names: list[Any] = [(name, type(module).__name__) for name, module in model.model.named_modules()]
    digest.update(repr(names).encode())
    return digest.hexdigest()
