"""Tells transformers' `generate` where the prompt ends, and which cache to fill."""

from __future__ import annotations

from abc import abstractmethod
from contextvars import ContextVar
from typing import Any

from torch import Tensor
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import DynamicCache

from ftp_core.errors import ModelError
from ftp_core.skipping.cache import FTPCache

# Columns of the prompt while `generate` runs; transformers would not hand an argument of that name to every pass.
_PROMPT_LENGTH: ContextVar[int | Tensor | None] = ContextVar("prompt_length", default=None)
# Methods that a dense class may change: the others are called on the pruned model, which would not know of a change.
_HANDED_ON = {"prepare_inputs_for_generation"}


class PromptedGeneration(GenerationMixin):
    """`generate` for models whose `forward` takes a `prompt_length`, and whose blocks hold keys of their own."""

    base: PreTrainedModel

    @abstractmethod
    def _cache_to_fill(self) -> FTPCache | None:
        """Makes a cache for a new prompt; None if transformers' own will do."""

    def generate(self, inputs: Tensor | None = None, **kwargs: Any) -> Any:  # type: ignore[override]
        """See transformers; `prompt_length` is that of `forward`, by default all columns of the inputs.

        Raises:
            ModelError: The schedule skips tokens, and a kind of cache or pass is asked for that cannot hold them; or
                the dense model's class generates in a way of its own.
        """
        _check_overrides(type(self), type(self.base))
        first = inputs if inputs is not None else kwargs.get("input_ids", kwargs.get("inputs_embeds"))
        prompt_length = kwargs.pop("prompt_length", None if first is None else first.shape[1])
        token = _PROMPT_LENGTH.set(prompt_length)
        try:
            return super().generate(inputs, **kwargs)  # type: ignore[misc]
        finally:
            _PROMPT_LENGTH.reset(token)

    def prepare_inputs_for_generation(  # type: ignore[override]
        self, input_ids: Any, inputs_embeds: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """See transformers; the dense model's class does it."""
        base: Any = self.base
        prepared: dict[str, Any] = base.prepare_inputs_for_generation(input_ids, inputs_embeds=inputs_embeds, **kwargs)
        cache, prompt_length = prepared.get("past_key_values"), _PROMPT_LENGTH.get()
        # Behind the first pass, the cache has told the prompt from the rest already.
        if prompt_length is not None and (cache is None or cache.get_seq_length() == 0):
            if isinstance(prompt_length, Tensor) and prompt_length.numel() > 1:
                # transformers has made several rows of each, for beams or samples.
                prompt_length = prompt_length.repeat_interleave(len(input_ids) // len(prompt_length))
            prepared["prompt_length"] = prompt_length
        return prepared

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """See transformers: its cache for any model is replaced by ours, before it is asked to record the past."""
        cache = self._cache_to_fill()
        if cache is not None:
            _check_cache(generation_config)
        given = model_kwargs.get("past_key_values")
        super()._prepare_cache_for_generation(  # type: ignore[misc]
            generation_config, model_kwargs, *args, **kwargs
        )
        if cache is None or given is not None or type(model_kwargs.get("past_key_values")) is not DynamicCache:
            return
        if getattr(generation_config, "is_assistant", False):
            cache.activate_past_recording()  # type: ignore[no-untyped-call]
        model_kwargs["past_key_values"] = cache

    def _prefill(
        self, input_ids: Any, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """See transformers, which can hand prompts on in parts."""
        size, cache = generation_config.prefill_chunk_size, model_kwargs.get("past_key_values")
        given = model_kwargs.get("inputs_embeds")
        width = (input_ids if given is None else given).shape[1]
        is_prompt = cache is None or cache.get_seq_length() == 0
        if size is not None and width > size and is_prompt and self._cache_to_fill() is not None:
            raise ModelError(
                f"prefill_chunk_size={size} hands the {width} columns of the prompts on in parts, but which of a "
                "prompt's tokens skip is decided on the whole prompt: leave it out, or generate under a schedule of "
                "zeros."
            )
        return super()._prefill(input_ids, generation_config, model_kwargs, *args, **kwargs)  # type: ignore[misc]

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """See transformers, where `generate_batch` comes this way, too.

        Raises:
            ModelError: Always: paged caches hold the same tokens in every block.
        """
        raise ModelError(
            "Continuous batching needs a cache that holds the same tokens in every block: call generate for each "
            "batch, or batch with the dense model (.base)."
        )


def _check_overrides(pruned: type, dense: type) -> None:
    """Raises `ModelError` if a dense class changes methods that are called on the pruned model in its place."""
    changed = [
        name
        for name in vars(GenerationMixin)
        if not name.startswith("__")
        and name not in _HANDED_ON
        # The class that defines it for the dense model is not a base of the pruned model's.
        and next((owner for owner in dense.__mro__ if name in vars(owner)), GenerationMixin) not in pruned.__mro__
    ]
    if changed:
        raise ModelError(
            f"{dense.__name__} generates in a way of its own ({', '.join(sorted(changed))}), which a pruned model of "
            "it would not follow: call forward, or generate with the dense model."
        )


def _check_cache(generation_config: Any) -> None:
    """Raises `ModelError` if prompts that skip tokens are to fill another cache than theirs."""
    implementation = getattr(generation_config, "cache_implementation", None)
    if implementation not in (None, "dynamic"):
        raise ModelError(
            f"cache_implementation={implementation!r} makes a cache that holds the same tokens in every block, but the "
            "schedule skips other ones in each: leave it out, or generate under a schedule of zeros."
        )
