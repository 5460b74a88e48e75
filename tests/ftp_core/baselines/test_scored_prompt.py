"""A prompt loses the tokens of lowest score before the first block, and begins as the shortened prompt."""

from __future__ import annotations

import pytest
import torch

from ftp_core.baselines import Budget
from ftp_core.baselines.scored_prompt import PromptScorer, ScoredPrompt
from ftp_core.cost.flops import FlopsCounter
from ftp_core.errors import ModelError
from ftp_core.routers import StaticRouter
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import prompt_batch
from ftp_core.training.distillation_config import DistillationConfig
from tests.ftp_core.baselines.slow_models import N_BLOCKS, deep_base, examples

CONFIG = DistillationConfig(steps=6, batch_size=4, evaluate_every=3, w_sparsity=0.0, lr=0.3)
# Weights of the scorer of states of width 32.
N_WEIGHTS = 33 * 64 + 64


def test_untrained_it_decides_as_the_shortened_prompt() -> None:
    model = SkippingModel(deep_base())
    schedule, prompts = [0.4] * N_BLOCKS, prompt_batch(examples())
    scored, static = (model.prefill(prompts, schedule, of).kept for of in (PromptScorer(32, 5), StaticRouter()))
    assert all(torch.equal(one, other) for one, other in zip(scored, static, strict=True))


@torch.no_grad()
def test_every_block_keeps_the_tokens_whose_embeddings_and_positions_score_highest_and_the_last_one() -> None:
    model = SkippingModel(deep_base())
    pruned = ScoredPrompt(CONFIG).fit(model, examples(), Budget(0.5, 2, 40), seed=1)
    scorer, prompts = pruned.router, prompt_batch(examples())
    assert isinstance(scorer, PromptScorer)
    kept, static = pruned.prefill(prompts).kept, model.prefill(prompts, pruned.schedule, StaticRouter()).kept
    assert all(torch.equal(one, kept[0]) for one in kept)
    assert not torch.equal(kept[0], static[0]), "nothing was learnt"
    for row, length in enumerate(prompts.lengths.tolist()):
        scores = []
        for place, token in enumerate(prompts.ids[row, :length]):
            state = model.model.get_input_embeddings().weight[token]
            normed = state / state.square().mean().add(1e-6).sqrt()
            scores.append(float(scorer.mlp(torch.cat([torch.tensor([place / (length - 1)]), normed]))))
        best = sorted(range(length - 1), key=scores.__getitem__, reverse=True)
        expected = {length - 1, *best[: pruned.schedule.kept_counts(length)[0] - 1]}
        assert set(kept[0][row].nonzero().flatten().tolist()) == expected


def test_the_scorer_alone_is_trained_and_its_operations_count_once() -> None:
    model = SkippingModel(deep_base())
    pruned = ScoredPrompt(CONFIG).fit(model, examples(), Budget(0.4, 2, 40))
    # Both layers have biases.
    assert pruned.preparation.trained_parameters == N_WEIGHTS + 65 and pruned.preparation.tokens > 0
    assert pruned.n_parameters == sum(own.numel() for own in model.model.parameters()) + N_WEIGHTS + 65
    blocks = FlopsCounter(model).count(pruned.schedule, 2, 40).total
    assert pruned.flops(2, 40) == blocks + 2 * 40 * 2 * N_WEIGHTS
    with pytest.raises(ModelError, match="embeddings of width 32, but the model's are 64 wide"):
        PromptScorer(32).check_model(6, 64)
