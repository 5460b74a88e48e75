"""The families of models whose blocks can skip tokens: where their blocks are, and how they are called."""

from __future__ import annotations

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
    a tuple. They hand keyword arguments that they do not know on to transformers' attention interface.

    Attributes:
        decoder: Attribute of the causal language model that holds its stack of blocks.
        blocks: Attribute of that stack with the list of blocks.
        cache_argument: Name of the blocks' argument for the cache.
        per_token: Arguments of a block with an entry per token, to be gathered along with the hidden states: tensors
            `[1 or B, L, ...]` or tuples of such. Rotary families get their positions this way; families that add
            positions to the embeddings need none.
    """

    decoder: str = "model"
    blocks: str = "layers"
    cache_argument: str = "past_key_values"
    per_token: tuple[str, ...] = ("position_ids", "position_embeddings")

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

    @property
    def embeds_positions(self) -> bool:
        """True if positions are rows of a table, so that there are none beyond the context."""
        return "position_embeddings" not in self.per_token

    def logits(self, model: PreTrainedModel, final_hidden: Tensor) -> Tensor:
        """Computes logits `[..., V]` from the decoder's final hidden states `[..., D]`."""
        raw: Tensor = model.get_output_embeddings()(final_hidden)
        return self.finished(model.config, raw).to(final_hidden.device)

    def finished(self, config: PreTrainedConfig, raw: Tensor) -> Tensor:
        """Computes logits of what the output embedding returned, number by number."""
        cap = getattr(config, "final_logit_softcapping", None)
        return raw if cap is None else (raw / cap).tanh() * cap


_PLAIN = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "olmo2")
_FAMILIES = {
    **dict.fromkeys(_PLAIN, Family()),
    "gpt_neox": Family(decoder="gpt_neox", cache_argument="layer_past"),
    "gpt2": Family(decoder="transformer", blocks="h", per_token=("position_ids",)),
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


def family_named(model_type: str) -> Family:
    """Returns the family of models of this type.

    Raises:
        ModelError: Such models cannot skip tokens; lists those that can.
    """
    family = _FAMILIES.get(model_type)
    if family is None:
        raise ModelError(
            f"Models of type {model_type!r} cannot skip tokens; supported are {', '.join(supported_families())}. "
            "Others can be added with ftp_core.register_family."
        )
    return family


def family_of(config: PreTrainedConfig) -> Family:
    """Returns the family of models of this configuration.

    Raises:
        ModelError: Such models cannot skip tokens; lists those that can.
    """
    family = family_named(config.model_type)
    if getattr(config, "add_cross_attention", False) or getattr(config, "use_bidirectional_attention", False):
        raise ModelError(f"This {config.model_type} model is no plain causal decoder: it cannot skip tokens.")
    return family


def context_of(config: PreTrainedConfig) -> int:
    """Number of tokens that models of this configuration read at once."""
    return int(config.max_position_embeddings)
