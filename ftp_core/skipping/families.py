"""The families of models whose blocks can skip tokens: where their blocks are, and how they are called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftp_core.errors import ModelError

if TYPE_CHECKING:
    # Whether a model is supported is said before they are loaded.
    from torch import Tensor, nn
    from transformers import PreTrainedConfig, PreTrainedModel

# What pruned models call themselves where others name their family.
PRUNED_TYPE = "ftp"
KERNELS = ("sdpa", "eager")


@dataclass(frozen=True)
class Family:
    """Facts that skipping needs about a family; everything else is left to the model's own code.

    Blocks take `hidden_states` first, and by keyword (or by position, as the signature of their `forward` says)
    `attention_mask`, a cache, and whatever else holds an entry per token; they return hidden states, alone or first in
    a tuple. They hand keyword arguments that they do not know on to transformers' attention interface, unless
    `attention` says otherwise.

    Attributes:
        decoder: Attribute of the causal language model that holds its stack of blocks.
        blocks: Attribute of that stack with the list of blocks.
        cache_argument: Name of the blocks' argument for the cache.
        per_token: Arguments of a block with an entry per token, to be gathered along with the hidden states: tensors
            `[1 or B, L, ...]` or tuples of such. Rotary families get their positions this way; families that add
            positions to the embeddings need none.
        attention: Attribute of a block with its attention, which is handed such keyword arguments in the block's
            place; None if the block does so itself.
        halves: Attributes of a block with its attention and its MLP, each of which returns what is added to the hidden
            states, perhaps through a norm that keeps zeros; alone, or first in a tuple. None if a block has other parts
            beside them, so that it only skips as a whole.
        parallel: True if both halves read the states before the block; a setting `use_parallel_residual` goes before
            this.
        query: Attribute of the attention with the projection that makes queries and nothing else; None if one makes
            keys and values, too.
        experts_run: Setting with the number of experts that a block's code runs for a token, where it has several.
        plain_below: Settings with a number of tokens from which on blocks depend on positions in ways that `per_token`
            does not tell; texts are shorter.
        plain_without: Settings under which a block is no block of its own, and why: refused unless they are off.
    """

    decoder: str = "model"
    blocks: str = "layers"
    cache_argument: str = "past_key_values"
    per_token: tuple[str, ...] = ("position_ids", "position_embeddings")
    attention: str | None = None
    halves: tuple[str, str] | None = ("self_attn", "mlp")
    parallel: bool = False
    query: str | None = "q_proj"
    experts_run: str = "num_experts_per_tok"
    plain_below: tuple[str, ...] = ()
    plain_without: tuple[tuple[str, str], ...] = ()

    def decoder_of(self, model: PreTrainedModel) -> Any:
        """The stack of blocks with its embedding and final norm."""
        return getattr(model, self.decoder)

    def blocks_of(self, model: PreTrainedModel) -> list[nn.Module]:
        """The blocks in order."""
        return list(getattr(self.decoder_of(model), self.blocks))

    def window(self, config: PreTrainedConfig, index: int) -> int | None:
        """Number of positions that block `index` attends to, its own the last; None for all."""
        window = getattr(config, "sliding_window", None)
        if window is None or not getattr(config, "use_sliding_window", True):
            return None
        kinds = getattr(config, "layer_types", None)
        return int(window) if kinds is None or kinds[index] == "sliding_attention" else None

    def windows(self, model: PreTrainedModel) -> tuple[int | None, ...]:
        """`window` of every block."""
        return tuple(self.window(model.config, index) for index in range(len(self.blocks_of(model))))

    def adds_in_parallel(self, config: PreTrainedConfig) -> bool:
        """True if a block's MLP does not read what its attention has added."""
        return bool(getattr(config, "use_parallel_residual", self.parallel))

    @property
    def ends_at_context(self) -> bool:
        """True if nothing can be decoded beyond the context, as if positions are rows of a table."""
        return "position_embeddings" not in self.per_token or bool(self.plain_below)

    def logits(self, model: PreTrainedModel, final_hidden: Tensor) -> Tensor:
        """Computes logits `[..., V]` from the decoder's final hidden states `[..., D]`."""
        raw: Tensor = model.get_output_embeddings()(final_hidden)
        return self.finished(model.config, raw).to(final_hidden.device)

    def finished(self, config: PreTrainedConfig, raw: Tensor) -> Tensor:
        """Computes logits of what the output embedding returned, number by number."""
        # Granite divides, Cohere multiplies.
        divisor, factor = getattr(config, "logits_scaling", None), getattr(config, "logit_scale", None)
        raw = raw if divisor is None else raw / divisor
        raw = raw if factor is None else raw * factor
        cap = getattr(config, "final_logit_softcapping", None)
        return raw if cap is None else (raw / cap).tanh() * cap


_PLAIN = (
    *("llama", "mistral", "qwen2", "qwen3", "smollm3", "granite"),
    *("gemma", "gemma2", "gemma3_text", "olmo", "olmo2", "olmo3"),
    *("mixtral", "qwen2_moe", "qwen3_moe", "olmoe"),
)
_SHARES_KEYS = "its last blocks read the keys and values of earlier ones"
_FAMILIES = {
    **dict.fromkeys(_PLAIN, Family()),
    **dict.fromkeys(("phi", "cohere", "cohere2"), Family(parallel=True)),
    "phi3": Family(query=None),
    "granitemoe": Family(halves=("self_attn", "block_sparse_moe")),
    "stablelm": Family(attention="self_attn"),
    "gemma4_text": Family(
        per_token=("position_ids", "position_embeddings", "per_layer_input"),
        halves=None,
        experts_run="top_k_experts",
        plain_without=(("num_kv_shared_layers", _SHARES_KEYS),),
    ),
    # Attention is cut into chunks, blocks without rotary embedding scale queries by a count of their own, and all
    # experts run for all tokens, weighted by 0 where they are not chosen.
    "llama4_text": Family(
        halves=("self_attn", "feed_forward"),
        experts_run="num_local_experts",
        plain_below=("attention_chunk_size", "floor_scale"),
    ),
    "gpt_neox": Family(decoder="gpt_neox", cache_argument="layer_past", halves=("attention", "mlp"), query=None),
    "gpt2": Family(decoder="transformer", blocks="h", per_token=("position_ids",), halves=("attn", "mlp"), query=None),
}


def register_family(model_type: str, family: Family) -> None:
    """Lets models of another type skip tokens.

    Args:
        model_type: `config.model_type` of the models.
        family: Facts about their blocks.

    Raises:
        ModelError: The type is registered already, as another family.
    """
    if _FAMILIES.get(model_type, family) != family:
        raise ModelError(f"Models of type {model_type!r} are registered already, as {_FAMILIES[model_type]}.")
    _FAMILIES[model_type] = family


def supported_families() -> tuple[str, ...]:
    """Model types that can skip tokens, sorted."""
    return tuple(sorted(_FAMILIES))


def family_described(facts: Mapping[str, Any]) -> Family:
    """Returns the family of models that a configuration describes.

    Args:
        facts: Contents of a model's config.json.

    Raises:
        ModelError: Such models cannot skip tokens; says why, or lists those that can.
    """
    model_type = str(facts.get("model_type"))
    family = _FAMILIES.get(model_type)
    if family is None:
        raise ModelError(
            f"Models of type {model_type!r} cannot skip tokens: {_reason_against(model_type, facts)} Supported are "
            f"{', '.join(supported_families())}."
        )
    reasons = [reason for setting, reason in family.plain_without if facts.get(setting)]
    if facts.get("add_cross_attention"):
        reasons.append("its blocks attend to another model's states")
    # Where images alone are read in both directions, text is not.
    if facts.get("use_bidirectional_attention") not in (None, False, "vision"):
        reasons.append("its tokens attend to those behind them")
    if reasons:
        raise ModelError(f"This {model_type} model is no plain causal decoder and cannot skip tokens: {reasons[0]}.")
    return family


# Beginnings of settings of blocks that keep a state.
_OF_STATES = ("mamba_", "ssm_", "lru_", "rwkv", "state_size", "conv_kernel", "conv_L_cache", "linear_key_head_dim")
_OF_MODALITIES = ("vision_config", "audio_config", "text_config", "vq_config")
_NOT_CAUSAL = ("add_cross_attention", "use_bidirectional_attention")
_ATTENTIONS = {"full_attention", "sliding_attention", "chunked_attention"}
_OWN_REASONS = {
    "gemma3n_text": f"its blocks pass several streams of hidden states on, and {_SHARES_KEYS}.",
    "rwkv": "its blocks keep a state that every token must pass.",
    "xlstm": "its blocks keep a state that every token must pass.",
}


def _reason_against(model_type: str, facts: Mapping[str, Any]) -> str:
    """Says why models of a type that is no family cannot skip tokens."""
    if model_type in _OWN_REASONS:
        return _OWN_REASONS[model_type]
    if any(facts.get(name) for name in _OF_MODALITIES):
        return (
            "they read images or sound besides text. Give the language model alone, saved as a model of its own, if it "
            "is of a supported type."
        )
    if facts.get("is_encoder_decoder"):
        return "they have an encoder besides the decoder."
    kinds = {str(kind) for kind in facts.get("layer_types") or ()} - _ATTENTIONS
    if kinds or any(name.startswith(_OF_STATES) for name in facts):
        return "not all of their blocks are attention: some keep a state that every token must pass, in order."
    return "their blocks are not known. Others can be added with ftp_core.register_family."


def family_of(config: PreTrainedConfig) -> Family:
    """Returns the family of models of this configuration.

    Raises:
        ModelError: See `family_described`.
    """
    family = _FAMILIES.get(config.model_type)
    if family is None:
        return family_described(config.to_dict())
    # Asked in every forward pass, and configurations are long.
    asked = ("model_type", *_NOT_CAUSAL, *(name for name, _ in family.plain_without))
    return family_described({name: getattr(config, name, None) for name in asked})


def context_of(config: PreTrainedConfig) -> int:
    """Number of tokens that models of this configuration read at once."""
    family = _FAMILIES.get(config.model_type)
    limits = [getattr(config, name, None) for name in family.plain_below] if family else []
    return min([int(config.max_position_embeddings), *(int(limit) - 1 for limit in limits if limit)])
