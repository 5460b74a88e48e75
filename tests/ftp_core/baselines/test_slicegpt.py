"""Hidden states lose their smallest principal components, and nothing else."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ftp_core.baselines import Budget, flops_saved
from ftp_core.baselines.fitting import text_batches
from ftp_core.baselines.slicegpt import SliceGPT, flops_by_width, sliced
from ftp_core.errors import ModelError
from ftp_core.skipping.skipping_model import SkippingModel
from tests.ftp_core.baselines.slow_models import examples, texts
from tests.ftp_core.tiny_models import fresh_tiny

WIDTH = 32


@torch.no_grad()
def model_of(family: str = "llama") -> SkippingModel:
    """A model whose norms scale and whose biases add something, as those of random models do not."""
    base, draws = fresh_tiny(family), torch.Generator().manual_seed(5)
    for name, weight in base.named_parameters():
        if weight.ndim == 1:
            weight.add_(torch.randn(weight.shape, generator=draws) / (2 if "norm" in name else 5))
    return SkippingModel(base)


def cut(model: SkippingModel, width: int) -> SkippingModel:
    return sliced(model, text_batches(model, examples()), width, lambda share: None)


@torch.no_grad()
def final_states(base: PreTrainedModel) -> Tensor:
    """Final states of all tokens of the examples `[T, D]`."""
    ids = [torch.tensor([text]) for text in texts(examples())]
    return torch.cat([base.model(each, use_cache=False).last_hidden_state[0] for each in ids])


@torch.no_grad()
def slow_final_states(base: PreTrainedModel, width: int) -> Tensor:
    """The same of a model that is not rotated: before each half, states are projected on their leading components."""
    arguments: dict[int, list[Any]] = defaultdict(list)
    hooks = [
        block.register_forward_pre_hook(lambda _, __, given, i=i: arguments[i].append(given), with_kwargs=True)
        for i, block in enumerate(base.model.layers)
    ]
    final_states(base)
    for hook in hooks:
        hook.remove()
    states = [base.model.embed_tokens(torch.tensor([text])) for text in texts(examples())]
    for index, block in enumerate(base.model.layers):
        for norm in (block.input_layernorm, block.post_attention_layernorm):
            leading = torch.linalg.svd(torch.cat(states, 1)[0].double()).Vh[:width]
            states = [each @ (leading.T @ leading).float() for each in states]
            if norm is block.input_layernorm:
                of_attention = zip(states, arguments[index], strict=True)
                added = [block.self_attn(norm(each), **given)[0] for each, given in of_attention]
            else:
                added = [block.mlp(norm(each)) for each in states]
            states = [sum(pair) for pair in zip(states, added, strict=True)]
    return base.model.norm(torch.cat(states, 1)[0])


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral-sliding", "smollm3"])
def test_with_all_components_it_computes_the_same_and_without_some_what_is_left_of_projected_states(
    family: str,
) -> None:
    model = model_of(family)
    torch.testing.assert_close(final_states(cut(model, WIDTH).model), final_states(model.model), atol=2e-3, rtol=1e-3)
    expected = slow_final_states(model.model, 20)
    torch.testing.assert_close(final_states(cut(model, 20).model), expected, atol=2e-3, rtol=1e-3)


def test_rotations_are_orthogonal_and_so_are_the_maps_between_them() -> None:
    pruned, whole = cut(model_of(), WIDTH), torch.eye(WIDTH)
    assert pruned.blocks[0].attention.residual.weight.shape == (WIDTH, WIDTH)
    for block in pruned.blocks:
        for half in (block.attention, block.mlp):
            torch.testing.assert_close(half.residual.weight.T @ half.residual.weight, whole, atol=1e-5, rtol=0)


def test_the_more_is_sliced_the_more_the_final_states_differ() -> None:
    model = model_of()
    dense = final_states(model.model)
    errors = [float((final_states(cut(model, width).model) - dense).norm()) for width in (32, 31, 26, 20, 12, 4)]
    assert errors == sorted(errors) and errors[0] < 1e-2 * errors[1]


@pytest.mark.parametrize("share", [0.2, 0.45])
def test_the_width_meets_the_budget_with_the_maps_on_the_residual_connections(share: float) -> None:
    model, budget = model_of("qwen2"), Budget(share, 2, 40)
    pruned = SliceGPT(multiple=4).fit(model, examples(), budget)
    width = round(WIDTH * (1 - pruned.sparsity.value))
    assert width % 4 == 0 and pruned.model.model.get_input_embeddings().weight.shape[1] == width
    counted = flops_by_width(model, budget)
    assert pruned.flops(2, 40) == pytest.approx(counted(width))
    target = budget.target_flops(model)
    assert min(range(4, 36, 4), key=lambda other: abs(counted(other) - target)) == width
    assert flops_saved(pruned, 2, 40) < pruned.sparsity.value


def test_tied_embeddings_part_and_the_head_stays_the_dense_one() -> None:
    base = fresh_tiny().to(torch.bfloat16)
    base.config.tie_word_embeddings = True
    base.tie_weights()
    pruned = SliceGPT(multiple=1).fit(SkippingModel(base), examples(), Budget(0.3, 2, 40))
    embeddings, head = pruned.model.model.get_input_embeddings().weight, pruned.model.model.get_output_embeddings()
    assert base.get_input_embeddings().weight is base.get_output_embeddings().weight is head.weight
    assert embeddings.shape[1] < WIDTH and not pruned.model.model.config.tie_word_embeddings
    assert base.config.tie_word_embeddings and not any(p.requires_grad for p in pruned.model.model.parameters())
    assert {weight.dtype for weight in pruned.model.model.parameters()} == {torch.bfloat16}
    assert pruned.n_parameters == sum(weight.numel() for weight in pruned.model.model.parameters())


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("gpt2", "SliceGPT cuts projections .* needs a family with those of Llama"),
        ("gemma", "block 0 of this gemma model has others"),
        ("cohere", "block 0 of this cohere model has others"),
        ("olmo", "block 0 of this olmo model has others"),
        ("olmo2", "block 0 of this olmo2 model has others"),
        ("granite", "block 0 of this granite model does not just add"),
        ("qwen3_moe", "needs a family with those of Llama"),
    ],
)
def test_families_that_rotations_would_change_are_refused(family: str, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        SliceGPT().fit(SkippingModel(fresh_tiny(family)), examples(), Budget(0.3))
    with pytest.raises(ModelError, match="give at least 1"):
        SliceGPT(multiple=0)
