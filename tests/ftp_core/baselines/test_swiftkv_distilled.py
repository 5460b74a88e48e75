"""Projections that learn to make later keys and values from the states that the prompt stops with."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from ftp_core.baselines import Budget, ScheduledModel
from ftp_core.baselines.fitting import Effort
from ftp_core.baselines.swiftkv import SwiftKV
from ftp_core.baselines.swiftkv_distilled import SwiftKVDistilled, fit_projections, stopped_forward
from ftp_core.errors import CoreError, ModelError
from ftp_core.quality.quality import QualitySet
from ftp_core.skipping.interception import BlockCall, intercepted, replaced_forwards
from ftp_core.skipping.kept_projections import kept_projections_of
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import IGNORED, ContinuationBatch, EncodedExample, answer_batch, prompt_batch
from ftp_core.training.distillation_config import DistillationConfig
from ftp_core.training.gated import TrainingBatch
from tests.ftp_core.baselines.slow_models import N_BLOCKS, deep_base, examples

CONFIG = DistillationConfig(steps=4, batch_size=4, evaluate_every=2, w_sparsity=0.0, lr=0.01)
BUDGET = Budget(0.45, 2, 40)
N_WHOLE = 3
# Shares of the preparation that were reported as done, by family.
DONE: dict[str, list[float]] = {}


@cache
def fitted(family: str = "llama") -> ScheduledModel:
    on_step = DONE.setdefault(family, []).append
    return SwiftKVDistilled(CONFIG).fit(SkippingModel(deep_base(family)), examples(8), BUDGET, on_step=on_step)


def test_training_lowers_the_divergence_on_the_calibration_texts_and_changes_no_weight_of_the_model() -> None:
    pruned = fitted()
    model, quality = pruned.dense, QualitySet(pruned.dense, examples(8))
    plain = SwiftKV().fit(model, examples(8), BUDGET)
    assert quality.evaluate_pruned(pruned).kl < 0.9 * quality.evaluate_pruned(plain).kl
    assert pruned.schedule == plain.schedule and pruned.sparsity == plain.sparsity
    untouched = deep_base().state_dict()
    assert all(torch.equal(weight, untouched[name]) for name, weight in model.model.state_dict().items())
    assert kept_projections_of(model.model) is None
    own = {weight.data_ptr() for weight in model.model.parameters()}
    assert {weight.data_ptr() for weight in pruned.model.model.parameters()} == own


def test_keys_and_values_of_later_blocks_are_what_was_trained_and_counted() -> None:
    pruned = fitted()
    projections, dense = kept_projections_of(pruned.model.model), pruned.dense.model
    assert projections is not None
    for index in range(N_BLOCKS):
        assert set(projections.of(index)) == ({"k_proj", "v_proj"} if index >= N_WHOLE else set())
    n_trained = (N_BLOCKS - N_WHOLE) * 2 * 32 * 16
    assert pruned.preparation.trained_parameters == n_trained and pruned.preparation.tokens > 0
    assert pruned.n_parameters == sum(weight.numel() for weight in dense.parameters()) + n_trained
    # All batches have been counted before the end is reported.
    assert sorted(DONE["llama"]) == DONE["llama"] and DONE["llama"][-3] < DONE["llama"][-2] == DONE["llama"][-1] == 1


@torch.no_grad()
def slow_predictions(pruned: ScheduledModel, example: EncodedExample) -> Tensor:
    """Logits of a completion's tokens where blocks compute all tokens, with one projection or the other for each."""
    base, n_prompt = pruned.dense.model, len(example.prompt)
    projections = kept_projections_of(pruned.model.model)
    text = torch.tensor([[*example.prompt, *example.continuations[0]]])

    def run(index: int, call: BlockCall) -> Tensor:
        if index < N_WHOLE:
            return call.run(call.hidden)
        assert projections is not None
        parts = list(projections.of(index).items())

        def spliced(number: int, module: nn.Module) -> object:
            own, other = module.forward, parts[number][1]
            return lambda hidden: torch.cat([other(hidden[:, : n_prompt - 1]), own(hidden[:, n_prompt - 1 :])], 1)

        attention = call.block.get_submodule(pruned.dense.family.halves[0])
        with replaced_forwards([attention.get_submodule(name) for name, _ in parts], spliced):
            behind = call.run(call.hidden)
        return torch.cat([call.hidden[:, : n_prompt - 1], behind[:, n_prompt - 1 :]], 1)

    with intercepted(pruned.dense.blocks, run):
        logits: Tensor = base(text, use_cache=False).logits[0, n_prompt - 1 : -1]
    return logits


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_trained_projections_serve_tokens_that_stop_and_no_others(family: str) -> None:
    pruned, example = fitted(family), examples()[2]
    assert kept_projections_of(pruned.model.model) is not None
    completion = ContinuationBatch(torch.tensor([example.continuations[0]]), torch.zeros(1).long())
    hidden = pruned.continuation_hidden(pruned.prefill(prompt_batch([example])), completion)
    found = pruned.model.logits(hidden)[0]
    torch.testing.assert_close(found, slow_predictions(pruned, example), atol=2e-4, rtol=1e-4)


def test_training_computes_what_the_pruned_model_does() -> None:
    pruned, some = fitted(), examples()[:3]
    projections = kept_projections_of(pruned.model.model)
    assert projections is not None
    of_blocks = {index: projections.of(index) for index in range(N_WHOLE, N_BLOCKS)}
    # Protected tokens do not stop.
    pruned, answers = replace(pruned, model=pruned.model.protecting(2)), answer_batch(some)
    found = stopped_forward(pruned.dense.protecting(2), TrainingBatch.of(some), N_WHOLE, of_blocks)
    expected = pruned.continuation_hidden(pruned.prefill(prompt_batch(some)), answers)[answers.ids != IGNORED]
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)


@torch.no_grad()
def test_the_regression_finds_projections_that_others_were_made_by() -> None:
    """Where blocks add nothing, later states are those that the prompt stops with, and nothing is to be changed."""
    model = SkippingModel(deep_base())
    for block in model.blocks[N_WHOLE:]:
        for weight in (block.self_attn.o_proj.weight, block.mlp.down_proj.weight):
            weight.zero_()
    for index, parts in fit_projections(model, examples(), N_WHOLE, Effort(model)).items():
        for name, part in parts.items():
            own = model.blocks[index].self_attn.get_submodule(name).weight
            torch.testing.assert_close(part.weight, own, atol=1e-4, rtol=1e-4)


def test_at_the_last_block_nothing_is_trained() -> None:
    pruned = SwiftKVDistilled(CONFIG).fit(SkippingModel(deep_base()), examples(), Budget(0.01, 2, 40))
    assert pruned.model is pruned.dense and pruned.preparation.trained_parameters == 0


class Opaque(nn.Module):
    """A projection whose weights are not to be seen, as quantised ones."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.hidden = (part,)

    def forward(self, hidden: Tensor) -> Tensor:
        projected: Tensor = self.hidden[0](hidden)
        return projected


def test_projections_that_cannot_be_trained_are_refused() -> None:
    model = SkippingModel(deep_base())
    for attention in (block.self_attn for block in model.blocks):
        attention.k_proj, attention.v_proj = Opaque(attention.k_proj), Opaque(attention.v_proj)
    with pytest.raises(ModelError, match="those of this model are quantised or not in memory"):
        fit_projections(model, examples(), N_WHOLE, Effort(model))


def test_where_no_token_stops_projections_stay_as_they_are() -> None:
    model, single = SkippingModel(deep_base()), [EncodedExample((4,), ((5, 6),), 0, False)]
    for index, parts in fit_projections(model, single, N_WHOLE, Effort(model)).items():
        assert torch.equal(parts["k_proj"].weight, model.blocks[index].self_attn.k_proj.weight)


def test_one_example_is_too_little_to_set_some_aside() -> None:
    with pytest.raises(CoreError, match="too few to train on some"):
        SwiftKVDistilled(CONFIG).fit(SkippingModel(deep_base()), examples(1), BUDGET)
