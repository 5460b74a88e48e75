"""One forward pass of a pruned model over prompts, completions, or tokens that are decoded.

Dimensions: B rows, L columns of a pass, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from ftp_core.checks import check_prompts
from ftp_core.errors import DataError, ModelError
from ftp_core.routers import Router, RoutingState
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.cache import FTPCache
from ftp_core.skipping.columns import cut_columns, prompt_columns, real_columns
from ftp_core.skipping.decoding import DecodePass
from ftp_core.skipping.families import Family, context_of
from ftp_core.skipping.interception import BlockHandler, exclusive, intercepted
from ftp_core.skipping.packing import AUTO, SlotsExceededError, packs
from ftp_core.skipping.prefixes import Passage
from ftp_core.skipping.rotary import rotary_lengths
from ftp_core.skipping.skipping import PromptPass

# Arguments that are not the loss function's.
_OF_FORWARD = (
    *("input_ids", "inputs_embeds", "attention_mask", "position_ids"),
    *("past_key_values", "labels", "use_cache", "logits_to_keep"),
)


@dataclass(frozen=True)
class PrunedForward:
    """Runs a dense model's own forward with its blocks in the hands of skipping.

    Attributes:
        base: The dense model.
        family: Its family.
        schedule: One sparsity per block.
        router: Router of the prompts.
        decode_sparsity: Most that a block may skip of the decoded tokens.
        keep_first: Number of tokens at the beginning of every prompt that are protected.
        packing: See `SkippingModel`.
        passage: Passage of the prompts through the blocks; None for one through all of them that leaves nothing.
    """

    base: PreTrainedModel
    family: Family
    schedule: SparsitySchedule
    router: Router
    decode_sparsity: float
    keep_first: int = 0
    packing: str = AUTO
    passage: Passage | None = None

    def __call__(self, arguments: dict[str, Any], prompt_length: int | Tensor | None) -> CausalLMOutputWithPast:
        """Runs a forward pass with arguments of the dense model's forward; see `FTPForCausalLM.forward`."""
        first = arguments["input_ids"] if arguments["input_ids"] is not None else arguments["inputs_embeds"]
        given, use_cache = arguments["past_key_values"], arguments["use_cache"]
        n_rows, width = first.shape[:2]
        seen = 0 if given is None else int(given.get_seq_length())
        if not any(self.schedule) and not isinstance(given, FTPCache):
            is_part = prompt_length is not None and bool((torch.as_tensor(prompt_length) > width).any())
            return self._dense(arguments, n_rows, width, first.device, is_checked=seen == 0 and not is_part)
        is_caching = bool(getattr(self.base.config, "use_cache", True)) if use_cache is None else use_cache
        cache = self._cache(given, seen, is_caching)
        real_BL = real_columns(arguments["attention_mask"], n_rows, width, seen, first.device)
        if seen == 0:
            check_prompts(real_BL, context_of(self.base.config))
        arguments |= {"past_key_values": cache, "use_cache": cache is not None}
        if seen:
            assert cache is not None
            return self._decode(arguments, real_BL, cache)
        prompt_BL = prompt_columns(real_BL, arguments["labels"], prompt_length)
        if self.decode_sparsity > 0 and bool((real_BL & ~prompt_BL).any()):
            with rotary_lengths(self.base, [_read_length(arguments, width)]):
                return self._prompt_then_tokens(arguments, real_BL, prompt_BL, cache, is_asked=bool(use_cache))
        routes = self.decode_sparsity > 0 and cache is not None
        if cache is not None:
            cache.schedule = self.schedule

        def run(is_packed: bool) -> CausalLMOutputWithPast:
            state = RoutingState.start(prompt_BL, self.keep_first)
            handler = PromptPass(
                self.base, self.family, self.schedule, self.router, state, real_BL, cache, routes, is_packed
            )
            through = handler if self.passage is None else self.passage.through(handler, state)
            return self._run(through, arguments, real_BL, cache)

        if routes or not packs(self.base, first.device, self.packing):
            return run(False)
        try:
            return run(True)
        except SlotsExceededError:
            if cache is not None:
                cache.start_again()
            return run(False)

    def _dense(
        self, arguments: dict[str, Any], n_rows: int, width: int, device: torch.device, is_checked: bool
    ) -> CausalLMOutputWithPast:
        """Runs the dense model itself, which takes masks, caches and parts that skipping does not."""
        mask = arguments["attention_mask"]
        # Some caches come with masks of all pairs, or with one for each kind of block.
        if is_checked and (mask is None or (isinstance(mask, Tensor) and mask.shape == (n_rows, width))):
            check_prompts(real_columns(mask, n_rows, width, 0, device), context_of(self.base.config))
        with exclusive(self.family.blocks_of(self.base)):
            outputs: CausalLMOutputWithPast = self.base(**arguments)
        return outputs

    def _run(
        self, handler: BlockHandler, arguments: dict[str, Any], real_BL: Tensor, cache: FTPCache | None
    ) -> CausalLMOutputWithPast:
        try:
            with intercepted(self.family.blocks_of(self.base), handler):
                outputs: CausalLMOutputWithPast = self.base(**arguments)
        except BaseException:
            if cache is not None:
                cache.is_torn = True
            raise
        if cache is not None:
            cache.advance(real_BL)
        return outputs

    def _cache(self, given: Cache | None, seen: int, is_caching: bool) -> FTPCache | None:
        if isinstance(given, FTPCache):
            if given.is_torn:
                raise ModelError(
                    "A forward pass broke off while it filled this cache: start from the prompt with another."
                )
            return given
        if seen:
            raise ModelError(
                f"A {type(given).__name__} that has seen {seen} tokens cannot go on under a schedule that skips: start "
                "from the prompt again."
            )
        # Ours takes its place, so that whatever it does beside holding keys would be lost.
        if given is not None and (type(given) is not DynamicCache or given.offloading):
            kind = f"{'offloaded ' if getattr(given, 'offloading', False) else ''}{type(given).__name__}"
            raise ModelError(f"A {kind} cannot hold other tokens in every block: pass none, or a plain DynamicCache.")
        return self.new_cache() if is_caching else None

    def new_cache(self) -> FTPCache:
        """Makes an empty cache for this model."""
        return FTPCache(self.family.windows(self.base))

    def _decode(self, arguments: dict[str, Any], real_BL: Tensor, cache: FTPCache) -> CausalLMOutputWithPast:
        """Runs tokens behind a prompt; one at a time where they are routed."""
        n_rows, width = real_BL.shape
        self._check_room(real_BL, cache)
        routed = self.decode_sparsity > 0 and any(self.schedule) and cache.decode is not None
        if not routed:
            # What decoded tokens hear is not followed any longer, so that none behind them can be routed.
            cache.decode = None
        if routed and width > 1:
            return self._one_by_one(arguments, real_BL, cache)
        columns_BL = torch.arange(cache.seen, cache.seen + width, device=real_BL.device).expand(n_rows, -1)
        share = self.decode_sparsity if routed else 0.0
        handler = DecodePass(self.base, self.family, cache, real_BL, columns_BL, self.schedule, self.router, share)
        return self._run(handler, arguments, real_BL, cache)

    def _check_room(self, real_BL: Tensor, cache: FTPCache) -> None:
        n_rows, width = real_BL.shape
        if width == 0:
            raise DataError("There is no new token: give at least one.")
        if cache.real is not None and len(cache.real) != n_rows:
            raise DataError(f"The input has {n_rows} rows, but the cache holds {len(cache.real)}: give as many.")
        context = context_of(self.base.config)
        # Rotary models go on behind their context, if worse; where positions are rows of a table, there are no more.
        if self.family.ends_at_context and cache.seen + width > context:
            n_tokens = int((real_BL.sum(1) + (0 if cache.real is None else cache.real.sum(1))).amax())
            if n_tokens > context:
                raise DataError(f"{n_tokens} tokens are more than the {context} that the model has positions for.")

    def _one_by_one(self, arguments: dict[str, Any], real_BL: Tensor, cache: FTPCache) -> CausalLMOutputWithPast:
        logits: list[Tensor] = []
        start, width = cache.seen, real_BL.shape[1]
        with rotary_lengths(self.base, [_read_length(arguments, start + width)]):
            for column in range(width):
                step = cut_columns(arguments, column, column + 1, start) | {"labels": None, "logits_to_keep": 0}
                logits.append(_logits(self._decode(step, real_BL[:, column : column + 1], cache)))
        return self._with_loss(torch.cat(logits, 1), arguments, cache)

    def _prompt_then_tokens(
        self, arguments: dict[str, Any], real_BL: Tensor, prompt_BL: Tensor, cache: FTPCache | None, is_asked: bool
    ) -> CausalLMOutputWithPast:
        """Runs prompts, then their completions token by token: each is routed by what stands before it alone."""
        wanted = [name for name in ("output_hidden_states", "output_attentions") if arguments.get(name)]
        if wanted:
            raise ModelError(
                f"{wanted[0]} is not to be had where completions run token by token: decode_sparsity is on."
            )
        parts: dict[str, Any] = {"labels": None, "logits_to_keep": 0, "use_cache": True}
        ends = [int(row.nonzero().amax()) + 1 for row in prompt_BL]
        if len(set(ends)) > 1:
            if is_asked:
                raise ModelError(
                    "The prompts end at different columns, so that routed tokens behind them fill no common cache: pad "
                    "left, or set use_cache or decode_sparsity to nothing."
                )
            logits = []
            for row, end in enumerate(ends):
                alone = {
                    name: value[row : row + 1] if isinstance(value, Tensor) and value.shape[0] == len(ends) else value
                    for name, value in arguments.items()
                }
                logits.append(_logits(self(alone | parts | {"past_key_values": None}, end)))
            return self._with_loss(torch.cat(logits), arguments, None)
        end, filled = ends[0], self.new_cache() if cache is None else cache
        parts["past_key_values"] = filled
        prompt = self(cut_columns(arguments, 0, end, 0) | parts, None)
        rest = cut_columns(arguments, end, real_BL.shape[1], 0) | parts
        behind = self._one_by_one(rest, real_BL[:, end:], filled)
        return self._with_loss(torch.cat([_logits(prompt), _logits(behind)], 1), arguments, cache)

    def _with_loss(
        self, logits_BLV: Tensor, arguments: dict[str, Any], cache: FTPCache | None
    ) -> CausalLMOutputWithPast:
        """Makes the outputs from the logits of all columns."""
        labels, keep, loss = arguments["labels"], arguments["logits_to_keep"], None
        if labels is not None:
            more = {name: value for name, value in arguments.items() if name not in _OF_FORWARD}
            vocab_size = self.base.config.vocab_size
            loss = self.base.loss_function(logits=logits_BLV, labels=labels, vocab_size=vocab_size, **more)
        kept = keep if isinstance(keep, Tensor) else slice(-keep or None, None)
        return CausalLMOutputWithPast(loss=loss, logits=logits_BLV[:, kept], past_key_values=cache)


def _read_length(arguments: dict[str, Any], n_columns: int) -> int:
    """Number of tokens that the longest row reads, as models derive it that embed positions by it."""
    positions = arguments["position_ids"]
    return n_columns if positions is None else int(positions.amax()) + 1


def _logits(outputs: CausalLMOutputWithPast) -> Tensor:
    assert outputs.logits is not None
    return outputs.logits
