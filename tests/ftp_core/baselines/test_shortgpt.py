"""Removing blocks is running a model that was built without them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel

from ftp_core.baselines.shortgpt import (
    BlockRemoval,
    block_influence,
    blocks_removed_at,
    flops_without_blocks,
    least_influential,
)
from ftp_core.cost.flops import FlopsCounter
from ftp_core.errors import ScheduleError
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.families import family_of
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import PromptBatch, pad_right
from tests.ftp_core.tiny_models import CONFIGS, N_BLOCKS, crossed, fresh_tiny, tiny


def built_without(name: str, removed: tuple[int, ...]) -> PreTrainedModel:
    """A model of its own whose list of blocks is really shorter."""
    model = fresh_tiny(name)
    family, config = family_of(model.config), model.config
    stay = [index for index in range(N_BLOCKS) if index not in removed]
    blocks = torch.nn.ModuleList(family.blocks_of(model)[index] for index in stay)
    for index, block in enumerate(blocks):
        for module in block.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index
    setattr(family.decoder_of(model), family.blocks, blocks)
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = [config.layer_types[index] for index in stay]
    config.num_hidden_layers = len(stay)
    if width := getattr(config, "hidden_size_per_layer_input", 0):
        # The inputs of all blocks stand side by side.
        columns = torch.tensor([index * width + column for index in stay for column in range(width)])
        decoder = family.decoder_of(model)
        table, projection = decoder.embed_tokens_per_layer.weight, decoder.per_layer_model_projection.weight
        table.data, projection.data = table.data[:, columns], projection.data[columns]
    return model


def decoded(model: PreTrainedModel, ids: Tensor) -> list[Tensor]:
    """Last logits of a prompt of 12 tokens, and of those behind it one by one."""
    outputs = model(ids[:, :12], use_cache=True)
    logits = [outputs.logits[:, -1]]
    for column in range(12, ids.shape[1]):
        outputs = model(ids[:, column : column + 1], past_key_values=outputs.past_key_values, use_cache=True)
        logits.append(outputs.logits[:, -1])
    return logits


@pytest.mark.parametrize(("name", "removed"), crossed(CONFIGS, [(0,), (1,), (0, 2), ()]))
@torch.inference_mode()
def test_removing_blocks_equals_a_model_built_without_them(name: str, removed: tuple[int, ...]) -> None:
    ids = torch.randint(3, 50, (2, 20), generator=torch.Generator().manual_seed(0))
    step, cache = BlockRemoval(removed).step_of(tiny(name)), None
    logits: list[Tensor] = []
    for columns in (ids[:, :12], *ids[:, 12:].split(1, 1)):
        last, cache = step(columns, cache)
        logits.append(last)
    expected = decoded(built_without(name, removed), ids)
    torch.testing.assert_close(torch.stack(logits), torch.stack(expected), atol=2e-4, rtol=1e-4)


@torch.inference_mode()
def test_removed_blocks_hold_no_keys_and_the_others_all() -> None:
    step = BlockRemoval((0, 2)).step_of(tiny())
    _, cache = step(torch.ones(2, 9, dtype=torch.long), None)
    _, cache = step(torch.ones(2, 1, dtype=torch.long), cache)
    assert cache.held() == (0, 10, 0)


@pytest.mark.parametrize("removed", [(3,), (-1,), (0, 1, 2)])
def test_blocks_that_are_not_there_and_all_blocks_are_refused(removed: tuple[int, ...]) -> None:
    with pytest.raises(ScheduleError, match="leave at least one"):
        BlockRemoval(removed).step_of(tiny())


def slow_influence(model: PreTrainedModel, prompts: list[list[int]]) -> list[float]:
    """1 - cosine of every token's hidden states around a block, prompt by prompt, by hooks on the model itself."""
    similarities: list[list[float]] = [[] for _ in range(N_BLOCKS)]

    def hook(index: int) -> Any:
        def record(_: Any, args: Any, kwargs: Any, out: Any) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            behind = out[0] if isinstance(out, tuple) else out
            similarities[index].extend(
                float(cosine_similarity(one, other, dim=0))
                for one, other in zip(before.flatten(0, 1), behind.flatten(0, 1), strict=True)
            )

        return record

    blocks = family_of(model.config).blocks_of(model)
    hooks = [block.register_forward_hook(hook(i), with_kwargs=True) for i, block in enumerate(blocks)]
    for prompt in prompts:
        model(torch.tensor([prompt]))
    for one in hooks:
        one.remove()
    return [1 - sum(values) / len(values) for values in similarities]


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "gpt2"])
@torch.inference_mode()
def test_influence_is_how_much_a_block_turns_hidden_states_of_real_tokens(name: str) -> None:
    prompts = [[5, 6, 7, 8, 9], [11, 12], [20, 30, 40]]
    batch = PromptBatch(pad_right(prompts, 0), torch.tensor([5, 2, 3]))
    influence = block_influence(SkippingModel(fresh_tiny(name)), batch)
    assert influence == pytest.approx(slow_influence(fresh_tiny(name), prompts), abs=1e-5)


def test_the_least_influential_blocks_go_and_of_equal_ones_the_earlier() -> None:
    assert least_influential([0.3, 0.1, 0.2, 0.1], 0) == ()
    assert least_influential([0.3, 0.1, 0.2, 0.1], 1) == (1,)
    assert least_influential([0.3, 0.1, 0.2, 0.1], 3) == (1, 2, 3)
    for impossible in (4, -1):
        with pytest.raises(ScheduleError, match="leave at least one"):
            least_influential([0.3, 0.1, 0.2, 0.1], impossible)


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "gpt2"])
def test_operations_without_blocks_are_those_of_a_model_built_without_them(name: str) -> None:
    model, shallow = SkippingModel(fresh_tiny(name)), SkippingModel(built_without(name, (1,)))
    expected = FlopsCounter(shallow).count(SparsitySchedule.uniform(0.0, N_BLOCKS - 1), 2, 30).total
    assert flops_without_blocks(model, 1, 2, 30) == pytest.approx(expected)


def test_as_many_blocks_go_as_come_closest_to_the_schedules_operations() -> None:
    model = SkippingModel(tiny())
    for sparsity, n_removed in ((0.0, 0), (0.1, 0), (0.3, 1), (0.6, 2), (0.95, 2)):
        assert blocks_removed_at(model, SparsitySchedule.uniform(sparsity, N_BLOCKS), 2, 60) == n_removed
