"""How transformers' `generate` is told where the prompt ends, and which cache to fill."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor
from transformers import GenerationMixin
from transformers.cache_utils import DynamicCache

from ftp_core.cache import FTPCache

# Columns of the prompt while `generate` runs; transformers would not hand an argument of that name to every pass.
_PROMPT_LENGTH: ContextVar[int | Tensor | None] = ContextVar("prompt_length", default=None)


class PromptedGeneration(GenerationMixin):
    """`generate` for models whose `forward` takes a `prompt_length`, and whose blocks hold keys of their own."""

    @abstractmethod
    def _cache_to_fill(self) -> FTPCache | None:
        """A cache for a new prompt; None if transformers' own will do."""

    def generate(self, inputs: Tensor | None = None, **kwargs: Any) -> Any:  # type: ignore[override]
        """See transformers; `prompt_length` is what `forward` calls so, by default all columns of the inputs."""
        first = inputs if inputs is not None else kwargs.get("input_ids", kwargs.get("inputs_embeds"))
        prompt_length = kwargs.pop("prompt_length", None if first is None else first.shape[1])
        with _prompt_of(prompt_length):
            return super().generate(inputs, **kwargs)  # type: ignore[misc]

    def prepare_inputs_for_generation(  # type: ignore[override]
        self, input_ids: Any, inputs_embeds: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """See transformers."""
        prepared: dict[str, Any] = super().prepare_inputs_for_generation(  # type: ignore[misc]
            input_ids, inputs_embeds=inputs_embeds, **kwargs
        )
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
        given = model_kwargs.get("past_key_values")
        super()._prepare_cache_for_generation(  # type: ignore[misc]
            generation_config, model_kwargs, *args, **kwargs
        )
        if given is not None or type(model_kwargs.get("past_key_values")) is not DynamicCache:
            return
        cache = self._cache_to_fill()
        if cache is None:
            return
        if getattr(generation_config, "is_assistant", False):
            cache.activate_past_recording()  # type: ignore[no-untyped-call]
        model_kwargs["past_key_values"] = cache


@contextmanager
def _prompt_of(length: int | Tensor | None) -> Iterator[None]:
    """Context in which `generate` takes so many columns for the prompt."""
    token = _PROMPT_LENGTH.set(length)
    try:
        yield
    finally:
        _PROMPT_LENGTH.reset(token)
