"""Pruned models that are a model under a schedule and router, as most methods make them.

Dimensions: B rows, L tokens of a prompt, R continuations, C tokens of a continuation, D hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from ftp_core.baselines.protocol import Preparation, Sparsity
from ftp_core.cost.flops import FlopsCounter
from ftp_core.cost.measure import Step
from ftp_core.cost.memory import BlockHeads, kv_bytes
from ftp_core.errors import ModelError
from ftp_core.routers import Router, StaticRouter
from ftp_core.schedule import MAX_SPARSITY, BlockSparsity, SparsitySchedule
from ftp_core.skipping.families import family_of
from ftp_core.skipping.fitted_keys import keys_fitted
from ftp_core.skipping.head import Head
from ftp_core.skipping.kept_projections import kept_projections_of
from ftp_core.skipping.prefixes import Passage
from ftp_core.skipping.pruned_forward import PrunedForward
from ftp_core.skipping.skipping_model import Prefill, SkippingModel
from ftp_core.skipping.substitutes import substitutes_of
from ftp_core.text.encoding import ContinuationBatch, PromptBatch

# Arguments of a forward pass that are not given.
_ABSENT = dict.fromkeys(("inputs_embeds", "attention_mask", "position_ids", "labels"))


@dataclass(frozen=True)
class ScheduledModel:
    """A model, perhaps another one than the dense one, whose prompts skip tokens by schedule and router.

    Attributes:
        name: Name in results.
        dense: The dense model.
        model: The model that runs; it shares the weights that did not change.
        schedule: Its schedule.
        sparsity: See `PrunedModel`.
        preparation: See `PrunedModel`.
        router: Its router.
        heads: Heads of each block, where they are not those of the configuration.
        entries: Sparsities of each block to count operations and keys by, of a prompt's length, where the router keeps
            other numbers of tokens than the schedule says; None where it does not.
    """

    name: str
    dense: SkippingModel
    model: SkippingModel
    schedule: SparsitySchedule
    sparsity: Sparsity
    preparation: Preparation
    router: Router = field(default_factory=StaticRouter)
    heads: Sequence[BlockHeads] | None = None
    entries: Callable[[int], Sequence[BlockSparsity]] | None = None

    @property
    def head(self) -> Head:
        """See `PrunedModel`."""
        return self.model.head

    def prefill(self, prompts: PromptBatch) -> Prefill:
        """See `PrunedModel`."""
        with keys_fitted(self.model, self.schedule):
            return self.model.prefill(prompts, self.schedule, self.router)

    def continuation_hidden(self, prefill: Prefill, continuations: ContinuationBatch) -> Tensor:
        """See `PrunedModel`."""
        return self.model.continuation_hidden(prefill, continuations)

    def step_of(self, model: PreTrainedModel) -> Step:
        """See `PrunedModel`.

        Raises:
            ModelError: It was made from another model.
        """
        self.check_model(model)
        return cached_step(self.model.model, self.schedule, self.router, self.model.keep_first)

    def check_model(self, model: PreTrainedModel) -> None:
        """Raises `ModelError` if it was made from another model."""
        if model is not self.dense.model:
            raise ModelError(
                f"The pruned model {self.name!r} was made from another model than the one to be measured: give measure "
                "the model that it was fitted to."
            )

    @property
    def n_parameters(self) -> int:
        """See `PrunedModel`; those of the router, and of what stands in for halves or projections, are included."""
        base = self.model.model
        with keys_fitted(self.model, self.schedule):
            parts = (base, self.router, substitutes_of(base), kept_projections_of(base))
        modules = (part for part in parts if isinstance(part, nn.Module))
        return sum(parameter.numel() for module in modules for parameter in module.parameters())

    def flops(self, batch: int, length: int, new_tokens: int = 0) -> float:
        """See `PrunedModel`."""
        counter = FlopsCounter(self.model, self.heads)
        counted = counter.count(self.schedule, batch, length, new_tokens, self.router)
        if self.entries is None:
            return counted.total
        blocks = enumerate(self.entries(length))
        return counted.head + sum(
            counter.of_block(i, entry, batch, length, new_tokens, self.router).total for i, entry in blocks
        )

    def kv_bytes(self, batch: int, length: int, new_tokens: int = 0) -> int:
        """See `PrunedModel`."""
        held = self.schedule
        if self.entries is not None:
            entries = self.entries(length)
            shares = [min(MAX_SPARSITY, entry.attention) for entry in entries]
            held = SparsitySchedule.of_halves(shares, shares, [entry.keeps_kv for entry in entries])
        return kv_bytes(self.model, held, batch, length, new_tokens, self.heads)


def cached_step(
    base: PreTrainedModel,
    schedule: SparsitySchedule,
    router: Router | None = None,
    keep_first: int = 0,
    passage: Passage | None = None,
) -> Step:
    """A step of a model under a schedule and router (the static one by default); blocks may hold no keys at all."""
    family = family_of(base.config)
    forward = PrunedForward(base, family, schedule, router or StaticRouter(), 0.0, keep_first, passage=passage)

    def step(ids_BL: Tensor, cache: Any) -> tuple[Tensor, Any]:
        # transformers' own cache would count the tokens that it has seen by the keys of the first block.
        cache = forward.new_cache() if cache is None else cache
        given = {"input_ids": ids_BL, "past_key_values": cache, "use_cache": True, "logits_to_keep": 1}
        outputs = forward({**_ABSENT, **given}, None)
        assert outputs.logits is not None
        return outputs.logits[:, -1], outputs.past_key_values

    return step
