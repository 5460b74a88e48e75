"""Tiny random models of every supported family."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cache
from typing import TypeVar

import pytest
import torch
from _pytest.mark import ParameterSet
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from ftp_core.skipping.families import family_of
from ftp_core.skipping.interception import BlockCall
from ftp_core.skipping.kept_projections import KeptProjections, give_kept_projections
from ftp_core.skipping.norms import MeasuredStates
from ftp_core.skipping.projection_fits import changed_copies, projected
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.skipping.substitutes import Substitutes, give_substitutes

N_BLOCKS = 3
VOCABULARY = 50
CONTEXT = 128
# Beyond which models with longrope have other frequencies.
ORIGINAL_CONTEXT = 16
_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": N_BLOCKS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_HEAD = {"head_dim": 8}
_EXPERTS = {"num_experts_per_tok": 2}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": CONTEXT // 4,
}
_NO_GQA = {key: value for key, value in _SHAPE.items() if key != "num_key_value_heads"}
# Windows far shorter than the rows of the tests, so that they matter.
CONFIGS: dict[str, dict[str, object]] = {
    "llama": {"model_type": "llama", **_SHAPE, **_HEAD},
    "qwen2": {"model_type": "qwen2", **_SHAPE},
    "qwen2-sliding": {
        "model_type": "qwen2",
        **_SHAPE,
        "use_sliding_window": True,
        "sliding_window": 6,
        "max_window_layers": 1,
    },
    "qwen3": {"model_type": "qwen3", **_SHAPE, **_HEAD},
    "mistral": {"model_type": "mistral", **_SHAPE, **_HEAD, "sliding_window": None},
    "mistral-sliding": {"model_type": "mistral", **_SHAPE, **_HEAD, "sliding_window": 5},
    "gemma": {"model_type": "gemma", **_SHAPE, **_HEAD},
    "gemma2": {"model_type": "gemma2", **_SHAPE, **_HEAD, "sliding_window": 6, "attn_logit_softcapping": 2.0},
    "gemma3_text": {"model_type": "gemma3_text", **_SHAPE, **_HEAD, "sliding_window": 6, "sliding_window_pattern": 2},
    "phi3": {"model_type": "phi3", **_SHAPE, "sliding_window": 7},
    "olmo2": {"model_type": "olmo2", **_SHAPE},
    "olmo": {"model_type": "olmo", **_SHAPE, "clip_qkv": 1.5},
    "olmo3-yarn": {
        "model_type": "olmo3",
        **_SHAPE,
        "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {"full_attention": _YARN, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}},
    },
    "llama-yarn": {"model_type": "llama", **_SHAPE, **_HEAD, "rope_parameters": _YARN},
    # The second block of these two has no rotary embedding.
    "smollm3": {"model_type": "smollm3", **_SHAPE, "no_rope_layers": [1, 0, 1]},
    "cohere2": {
        "model_type": "cohere2",
        **_SHAPE,
        **_HEAD,
        "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "logit_scale": 0.3,
    },
    "cohere": {"model_type": "cohere", **_SHAPE, "use_qk_norm": True, "logit_scale": 0.3},
    "granite": {"model_type": "granite", **_SHAPE, "logits_scaling": 3.0, "residual_multiplier": 0.7},
    "phi": {"model_type": "phi", **_SHAPE, "qk_layernorm": True},
    "stablelm": {"model_type": "stablelm", **_SHAPE, "qk_layernorm": True, "use_qkv_bias": True},
    "stablelm-parallel": {"model_type": "stablelm", **_SHAPE, "use_parallel_residual": True},
    "mixtral": {"model_type": "mixtral", **_SHAPE, **_EXPERTS, "num_local_experts": 4},
    "qwen2_moe": {
        "model_type": "qwen2_moe",
        **_SHAPE,
        **_EXPERTS,
        "num_experts": 4,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 20,
    },
    # The last block has no experts.
    "qwen3_moe": {
        "model_type": "qwen3_moe",
        **_SHAPE,
        **_HEAD,
        **_EXPERTS,
        "num_experts": 4,
        "moe_intermediate_size": 24,
        "mlp_only_layers": [2],
    },
    "olmoe": {"model_type": "olmoe", **_SHAPE, **_EXPERTS, "num_experts": 4},
    "granitemoe": {"model_type": "granitemoe", **_SHAPE, **_EXPERTS, "num_local_experts": 4, "logits_scaling": 3.0},
    # The second block has neither experts nor rotary embedding; attention and scales would change behind the context.
    "llama4_text": {
        "model_type": "llama4_text",
        **_SHAPE,
        **_HEAD,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "moe_layers": [0, 2],
        "no_rope_layers": [1, 0, 1],
        "intermediate_size_mlp": 40,
        "attention_chunk_size": 2 * CONTEXT,
        "floor_scale": 2 * CONTEXT,
    },
    # Heads of full attention are wider.
    "gemma4_text": {
        "model_type": "gemma4_text",
        **_SHAPE,
        **_HEAD,
        "global_head_dim": 16,
        "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention", "full_attention"],
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCABULARY,
        "enable_moe_block": True,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 24,
        "final_logit_softcapping": 5.0,
    },
    "gpt_neox": {"model_type": "gpt_neox", **_NO_GQA, "rotary_pct": 0.5},
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": VOCABULARY,
        "n_embd": 32,
        "n_layer": N_BLOCKS,
        "n_head": 4,
        "n_positions": CONTEXT,
        "initializer_range": 0.3,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
}

# Other frequencies for longer texts, so that transformers embeds a row otherwise beside a longer one.
LENGTH_DEPENDENT: dict[str, dict[str, object]] = {
    "phi3-longrope": {
        "model_type": "phi3",
        **_SHAPE,
        "original_max_position_embeddings": ORIGINAL_CONTEXT,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10_000.0,
            "short_factor": [1.0, 1.0, 1.0, 1.0],
            "long_factor": [1.5, 2.0, 3.0, 4.0],
        },
    },
    "llama-longrope": {
        "model_type": "llama",
        **_SHAPE,
        **_HEAD,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10_000.0,
            "original_max_position_embeddings": ORIGINAL_CONTEXT,
            "short_factor": [1.0, 1.0, 1.0, 1.0],
            "long_factor": [1.5, 2.0, 3.0, 4.0],
        },
    },
}

# One of each kind: plain, with windows, with windows and norms behind its halves, parallel, with experts, with embedded
# positions.
KINDS = ("llama", "mistral-sliding", "gemma3_text", "gpt_neox", "qwen3_moe", "gpt2")
V = TypeVar("V")


def in_turns(names: Collection[str], variants: Sequence[V], whole: Collection[str] = KINDS) -> list[tuple[str, V]]:
    """Some families, by default those of different kinds, in all variants, and every other one in one, by turns."""
    others = [name for name in names if name not in whole]
    return [
        *((name, variant) for name in names if name in whole for variant in variants),
        *((name, variants[turn % len(variants)]) for turn, name in enumerate(others)),
    ]


def _quick(name: str) -> tuple[pytest.MarkDecorator, ...]:
    """A family of the same kind as another one is for stress tests."""
    return () if name in KINDS or name in LENGTH_DEPENDENT else (pytest.mark.slow,)


def crossed(names: Collection[str], variants: Sequence[V], whole: Collection[str] = KINDS) -> list[ParameterSet]:
    """Families and variants as of `in_turns`, where those of the same kind as another one are stress tests."""
    return [pytest.param(name, variant, marks=_quick(name)) for name, variant in in_turns(names, variants, whole)]


def each(names: Collection[str]) -> list[ParameterSet]:
    """All families, of which those of the same kind as another one are stress tests."""
    return [pytest.param(name, marks=_quick(name)) for name in names]


@cache
def tiny(name: str = "llama") -> PreTrainedModel:
    """A model in eval mode; shared, so not to be changed."""
    return fresh_tiny(name)


def fresh_tiny(name: str = "llama") -> PreTrainedModel:
    """A model of its own, of the same weights."""
    # A test that computes without gradients may be the first to ask; weights made there could not be trained through.
    with torch.inference_mode(False), torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**(CONFIGS | LENGTH_DEPENDENT)[name]))
    return model.eval()


@cache
def with_maps(name: str = "llama", rank: int = 2) -> PreTrainedModel:
    """A tiny model with random maps that stand in for what tokens skip."""
    model, draw = fresh_tiny(name), torch.Generator().manual_seed(0)
    blocks = family_of(model.config).blocks_of(model)
    maps = Substitutes(len(blocks), model.config.hidden_size, rank)
    for parameter in maps.parameters():
        parameter.normal_(generator=draw).mul_(0.3)
    give_substitutes(model, maps, blocks)
    return model


@cache
def with_projections(name: str = "llama") -> PreTrainedModel:
    """A tiny model with random projections of the keys and values of tokens that skip attention."""
    model = SkippingModel(fresh_tiny(name))
    give_kept_projections(model.model, random_projections(model))
    return model.model


@torch.no_grad()
def random_projections(model: SkippingModel) -> KeptProjections:
    """Projections that are not a model's own."""
    draw, of_blocks = torch.Generator().manual_seed(0), {}

    def handle(index: int, call: BlockCall) -> Tensor:
        attention = call.block.get_submodule(model.family.halves[0])
        changes = {
            part: torch.randn(one.read.shape[-1], one.made.shape[-1], generator=draw).mul_(0.2)
            for part, one in projected(call, model.family, MeasuredStates(call.hidden)).items()
        }
        of_blocks[index] = changed_copies(attention, changes)
        return call.run(call.hidden)

    model.run(handle, torch.tensor([[3, 4, 5]]), use_cache=False)
    return KeptProjections(of_blocks)
