"""A pruned model as a Hugging Face model: `generate`, `save_pretrained`, `from_pretrained`, pipelines."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.hub import cached_file

from ftp_core.attention import kernel_name
from ftp_core.cache import FTPCache
from ftp_core.checks import check_finite, check_prompts
from ftp_core.errors import DataError, ModelError, ScheduleError
from ftp_core.families import context_of, family_of
from ftp_core.identity import model_identity
from ftp_core.interception import BlockHandler, intercepted
from ftp_core.routers import (
    Router,
    RoutingState,
    ScoringRouter,
    StaticRouter,
    build_router,
    check_router_finite,
    describe_router,
)
from ftp_core.schedule import MAX_SPARSITY, SparsitySchedule
from ftp_core.skipping import DecodePass, PromptPass
from ftp_core.skipping_model import check_schedule

_WEIGHTS = "model.safetensors"
_ROUTER_PREFIX = "router."


class FTPConfig(PreTrainedConfig):
    """Configuration of a pruned model.

    Args:
        base_config: Configuration of the dense model.
        base_model: Directory or Hub id of the dense model, if its weights are kept there; None if they are included.
        base_identity: What the dense model is (`ftp_core.identity`), to notice another one under the same name.
        schedule: One sparsity per block.
        router: Description of the router (`ftp_core.routers.describe_router`).
        decode_sparsity: Most that a block may skip of the decoded tokens; 0 prunes only the prompt.
    """

    model_type = "ftp"
    sub_configs = {"base_config": AutoConfig}  # noqa: RUF012 - transformers' interface
    has_no_defaults_at_init = True

    def __init__(
        self,
        base_config: PreTrainedConfig | dict[str, Any] | None = None,
        base_model: str | None = None,
        base_identity: str | None = None,
        schedule: Sequence[float] | None = None,
        router: dict[str, Any] | None = None,
        decode_sparsity: float = 0.0,
        **kwargs: Any,
    ) -> None:
        if isinstance(base_config, dict):
            base_config = AutoConfig.for_model(**base_config)
        self.base_config = base_config
        self.base_model = base_model
        self.base_identity = base_identity
        self.schedule = None if schedule is None else [float(value) for value in schedule]
        self.router = router
        self.decode_sparsity = decode_sparsity
        if base_config is not None:
            for name in ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings"):
                kwargs.setdefault(name, getattr(base_config, name, None))
            # transformers writes this configuration's kernel into the dense model's.
            if kwargs.get("attn_implementation") is None:
                kwargs["attn_implementation"] = base_config._attn_implementation
        super().__init__(**kwargs)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """The dense model's configuration, which knows widths and counts."""
        return self if self.base_config is None else self.base_config

    def __getattr__(self, name: str) -> Any:
        """Widths and counts are the dense model's."""
        base = self.__dict__.get("base_config")
        if base is None or name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(base, name)


class FTPForCausalLM(PreTrainedModel, GenerationMixin):
    """A dense model whose prompts skip tokens, with the interface of the dense one.

    `model(input_ids, ...)` takes the whole input for the prompt, as `generate` does, unless `labels` or `prompt_length`
    say where the completion begins; a completion's tokens never influence the routing of the prompt. With a schedule of
    zeros it is the dense model, to the bit.

    Made by `from_dense`, `from_pretrained` and `AutoModelForCausalLM.from_pretrained`.
    """

    config_class = FTPConfig
    config: FTPConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = False
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules: Any = None

    def __init__(self, config: FTPConfig, base: PreTrainedModel | None = None) -> None:
        kernel = None if base is None else kernel_name(base)
        super().__init__(config)
        if config.base_config is None or config.schedule is None:
            raise ModelError("A pruned model is made from a dense one: use FTPForCausalLM.from_dense.")
        # transformers has just written this model's own kernel into the configuration of the dense one, which may not
        # have it (Gemma 2 has no sdpa): None lets it choose.
        chosen = config._attn_implementation if config._attn_implementation == "eager" else None
        config.base_config._attn_implementation = kernel or chosen
        self.base = AutoModelForCausalLM.from_config(config.base_config) if base is None else base
        self._family = family_of(self.base.config)
        kernel_name(self.base)
        self._no_split_modules = self.base._no_split_modules
        tied = getattr(self.base, "_tied_weights_keys", None) or {}
        self._tied_weights_keys = {f"base.{key}": f"base.{source}" for key, source in dict(tied).items()}
        self.router: Router = build_router(config.router or describe_router(StaticRouter()))
        self._schedule = SparsitySchedule(config.schedule)
        check_schedule(self._schedule, len(self._family.blocks_of(self.base)))
        self.decode_sparsity = config.decode_sparsity
        if base is None:
            self.post_init()  # type: ignore[no-untyped-call]
        if getattr(self.base, "generation_config", None) is not None:
            self.generation_config = self.base.generation_config

    @classmethod
    def from_dense(
        cls,
        model: PreTrainedModel,
        schedule: Sequence[float],
        router: Router | None = None,
        *,
        decode_sparsity: float = 0.0,
    ) -> FTPForCausalLM:
        """Prune a dense model; its weights are shared, not copied.

        Args:
            model: A causal language model of a supported family.
            schedule: One sparsity per block, each in [0, 0.95].
            router: Names the kept tokens; the static router if None.
            decode_sparsity: Most that a block may skip of the decoded tokens; 0 prunes only the prompt.

        Raises:
            ModelError: The family is not supported, a weight is not finite, or the router was trained for another
                model.
            ScheduleError: The schedule has another length than the model has blocks, or a value outside the range.
        """
        family = family_of(model.config)
        values = SparsitySchedule(schedule)
        check_schedule(values, len(family.blocks_of(model)))
        check_finite(model)
        router = StaticRouter() if router is None else router
        config = FTPConfig(
            base_config=model.config,
            base_identity=model_identity(model),
            schedule=list(values),
            router=describe_router(router),
            decode_sparsity=decode_sparsity,
            dtype=model.dtype,
        )
        pruned = cls(config, model)
        pruned.set_router(router)
        pruned.train(model.training)
        return pruned

    @property
    def schedule(self) -> SparsitySchedule:
        """One sparsity per block; may be set, to any sequence of floats, without loading anything again."""
        return self._schedule

    @schedule.setter
    def schedule(self, values: Sequence[float]) -> None:
        schedule = SparsitySchedule(values)
        check_schedule(schedule, self.n_blocks)
        if isinstance(self.router, ScoringRouter):
            self.router.check_schedule(schedule)
        self._schedule = schedule
        self.config.schedule = list(schedule)

    @property
    def decode_sparsity(self) -> float:
        """Most that a block may skip of the decoded tokens."""
        return self._decode_sparsity

    @decode_sparsity.setter
    def decode_sparsity(self, share: float) -> None:
        if not 0.0 <= share <= MAX_SPARSITY:
            raise ScheduleError(f"decode_sparsity is {share}, but must be in [0, {MAX_SPARSITY}].")
        if share > 0 and not self.router.routes_decoding:
            raise ModelError(f"A {self.router.kind} router cannot route decoded tokens: leave decode_sparsity at 0.")
        self._decode_sparsity = share
        self.config.decode_sparsity = share

    @property
    def n_blocks(self) -> int:
        """N."""
        return len(self._family.blocks_of(self.base))

    def set_router(self, router: Router) -> None:
        """Route with another router.

        Raises:
            ModelError: It was trained for another model, calibrated for another schedule, has a weight that is not
                finite, or cannot route decoded tokens though they are to skip.
        """
        check_router_finite(router)
        if isinstance(router, ScoringRouter):
            expected = self.config.base_identity
            if router.trained_for is not None and expected is not None and router.trained_for != expected:
                raise ModelError(
                    f"The router was trained for another model (identity {router.trained_for}) than this one "
                    f"({expected}): distil one for it."
                )
            router.check_schedule(self._schedule)
            router = router.to(self.device).eval()
        if self._decode_sparsity > 0 and not router.routes_decoding:
            raise ModelError(f"A {router.kind} router cannot route decoded tokens: set decode_sparsity to 0 first.")
        self._modules.pop("router", None)
        self.__dict__.pop("router", None)
        self.router = router
        self.config.router = describe_router(router)

    def get_input_embeddings(self) -> Any:
        """The dense model's."""
        return self.base.get_input_embeddings()

    def set_input_embeddings(self, value: Any) -> None:
        """Of the dense model."""
        self.base.set_input_embeddings(value)

    def get_output_embeddings(self) -> Any:
        """The dense model's."""
        return self.base.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: Any) -> None:
        """Of the dense model."""
        self.base.set_output_embeddings(new_embeddings)

    def compile_blocks(self, **options: Any) -> None:
        """Compile the blocks in place with `torch.compile`, for lengths that change.

        Args:
            options: Of `torch.compile`; `dynamic` is True by default.
        """
        for block in self._family.blocks_of(self.base):
            block.forward = torch.compile(block.forward, **{"dynamic": True, **options})

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        prompt_length: int | Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """As the dense model's, with prompts that skip tokens.

        Args:
            input_ids: `[B, L]`.
            attention_mask: 1 for tokens and 0 for padding, left or right `[B, seen + L]`.
            position_ids: `[B, L]`; derived as the dense model derives them if None.
            past_key_values: Of an earlier call; a new one is made if `use_cache`.
            inputs_embeds: Instead of `input_ids` `[B, L, D]`.
            labels: As in transformers, -100 where no token is to be predicted `[B, L]`. The completion begins at the
                first label that is not -100: labels for the whole input leave no prompt, so that nothing is skipped.
            use_cache: Whether to return keys and values for more tokens.
            logits_to_keep: See transformers.
            prompt_length: How many columns of the input, padding included, are the prompt: one number, or one per row
                `[B]`. The rest is completion. By default `labels` say it, or else everything is prompt.
            kwargs: Handed on to the dense model.

        Raises:
            DataError: A prompt is empty, all padding, or longer than the model's context.
            ModelError: The cache is not one that skipping can use.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise DataError("Give either input_ids or inputs_embeds.")
        first = input_ids if input_ids is not None else inputs_embeds
        assert first is not None
        arguments = {
            "input_ids": input_ids,
            "inputs_embeds": inputs_embeds,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "past_key_values": past_key_values,
            "labels": labels,
            "use_cache": use_cache,
            "logits_to_keep": logits_to_keep,
            **kwargs,
        }
        n_rows, width = first.shape[:2]
        seen = 0 if past_key_values is None else past_key_values.get_seq_length()
        real = _real(attention_mask, n_rows, width, first.device)
        if seen == 0:
            check_prompts(real, context_of(self.base.config))
        if not any(self._schedule) and not isinstance(past_key_values, FTPCache):
            outputs: CausalLMOutputWithPast = self.base(**arguments)
            return outputs
        is_caching = bool(getattr(self.base.config, "use_cache", True)) if use_cache is None else use_cache
        cache = self._cache(past_key_values, seen, is_caching)
        arguments |= {"past_key_values": cache, "use_cache": cache is not None}
        if seen:
            assert cache is not None
            return self._decode(arguments, real, cache)
        in_prompt = _prompt(real, labels, prompt_length)
        if self._decode_sparsity > 0 and bool((real & ~in_prompt).any()):
            return self._prompt_then_tokens(arguments, real, in_prompt, is_caching)
        routes = self._decode_sparsity > 0 and cache is not None
        state = RoutingState.start(in_prompt)
        outputs = self._run(
            PromptPass(self.base, self._family, self._schedule, self.router, state, real, cache, routes), arguments
        )
        if cache is not None:
            cache.advance(real)
        return outputs

    def _run(self, handler: BlockHandler, arguments: dict[str, Any]) -> CausalLMOutputWithPast:
        with intercepted(self._family.blocks_of(self.base), handler):
            outputs: CausalLMOutputWithPast = self.base(**arguments)
        return outputs

    def _cache(self, given: Cache | None, seen: int, is_caching: bool) -> FTPCache | None:
        if isinstance(given, FTPCache):
            return given
        if seen:
            raise ModelError(
                f"A {type(given).__name__} that has seen {seen} tokens cannot go on under a schedule that skips: start "
                "from the prompt again."
            )
        if given is not None and type(given).__name__ != "DynamicCache":
            raise ModelError(f"A {type(given).__name__} cannot hold other tokens in every block: pass none.")
        return FTPCache(self.n_blocks) if is_caching else None

    def _decode(self, arguments: dict[str, Any], real: Tensor, cache: FTPCache) -> CausalLMOutputWithPast:
        """Run tokens behind a prompt; one at a time where they are routed."""
        n_rows, width = real.shape
        routed = self._decode_sparsity > 0 and any(self._schedule) and cache.decode is not None
        if routed and width > 1:
            return self._one_by_one(arguments, real, cache)
        columns = torch.arange(cache.seen, cache.seen + width, device=real.device).expand(n_rows, -1)
        handler = DecodePass(self.base, self._family, cache, real, columns)
        if routed:
            handler = DecodePass(
                self.base, self._family, cache, real, columns, self._schedule, self.router, self._decode_sparsity
            )
        outputs = self._run(handler, arguments)
        cache.advance(real)
        return outputs

    def _one_by_one(self, arguments: dict[str, Any], real: Tensor, cache: FTPCache) -> CausalLMOutputWithPast:
        logits: list[Tensor] = []
        start = cache.seen
        for column in range(real.shape[1]):
            step = _columns(arguments, column, column + 1, start) | {"labels": None, "logits_to_keep": 0}
            logits.append(_logits(self._decode(step, real[:, column : column + 1], cache)))
        return self._with_loss(torch.cat(logits, 1), arguments, cache)

    def _prompt_then_tokens(
        self, arguments: dict[str, Any], real: Tensor, in_prompt: Tensor, is_caching: bool
    ) -> CausalLMOutputWithPast:
        """Run prompts, then their completions token by token: each is routed by what stands before it alone."""
        ends = [int(row.nonzero().amax()) + 1 for row in in_prompt]
        if len(set(ends)) > 1:
            # Rows reach the end of their prompts at different columns.
            logits = []
            for row, end in enumerate(ends):
                alone = {
                    name: value[row : row + 1] if isinstance(value, Tensor) and value.shape[0] == len(ends) else value
                    for name, value in arguments.items()
                }
                alone |= {"labels": None, "logits_to_keep": 0, "past_key_values": None, "use_cache": True}
                logits.append(self(**alone, prompt_length=end).logits)
            return self._with_loss(torch.cat(logits), arguments, None)
        end, cache = ends[0], FTPCache(self.n_blocks)
        parts = {"labels": None, "logits_to_keep": 0, "past_key_values": cache, "use_cache": True}
        prompt = self(**(_columns(arguments, 0, end, 0) | parts))
        rest = _columns(arguments, end, real.shape[1], 0) | parts
        behind = self._one_by_one(rest, real[:, end:], cache)
        return self._with_loss(
            torch.cat([_logits(prompt), _logits(behind)], 1), arguments, cache if is_caching else None
        )

    def _with_loss(self, logits: Tensor, arguments: dict[str, Any], cache: FTPCache | None) -> CausalLMOutputWithPast:
        """Outputs from the logits of all columns `[B, L, V]`."""
        labels, keep = arguments["labels"], arguments["logits_to_keep"]
        loss = None
        if labels is not None:
            loss = self.base.loss_function(logits=logits, labels=labels, vocab_size=self.base.config.vocab_size)
        kept = logits[:, slice(-keep, None) if isinstance(keep, int) and keep else slice(None)]
        if isinstance(keep, Tensor):
            kept = logits[:, keep]
        return CausalLMOutputWithPast(loss=loss, logits=kept, past_key_values=cache)

    def generate(self, inputs: Tensor | None = None, **kwargs: Any) -> Any:  # type: ignore[override]
        """See transformers. Without a cache, what was generated is told from the prompt by the prompt's length."""
        first = inputs if inputs is not None else kwargs.get("input_ids", kwargs.get("inputs_embeds"))
        if first is not None and "prompt_length" not in kwargs:
            kwargs["prompt_length"] = first.shape[1]
        return super().generate(inputs, **kwargs)  # type: ignore[misc]

    def prepare_inputs_for_generation(self, input_ids: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """See transformers."""
        prepared: dict[str, Any] = super().prepare_inputs_for_generation(  # type: ignore[misc]
            input_ids, **kwargs
        )
        cache = prepared.get("past_key_values")
        if cache is not None and cache.get_seq_length() > 0:
            # It has told the prompt from the rest already.
            prepared.pop("prompt_length", None)
        return prepared

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | os.PathLike[str], *, include_base: bool = True, **kwargs: Any
    ) -> None:
        """Write configuration, schedule, router and weights as safetensors.

        Args:
            save_directory: Where to.
            include_base: Whether to write the dense model's weights, too. Otherwise the name under which the dense
                model was loaded is kept, and `from_pretrained` loads it from there.
            kwargs: Of transformers; `push_to_hub` for example.

        Raises:
            ModelError: The dense model has no name to refer to.
        """
        name = getattr(self.base, "name_or_path", "") or None
        if not include_base and name is None:
            raise ModelError(
                "The dense model was not loaded from a directory or the Hub, so there is nothing to refer to: save it "
                "first, or include its weights."
            )
        self.config.base_model = None if include_base else name
        try:
            if include_base:
                super().save_pretrained(save_directory, **kwargs)
                return
            weights = {
                f"{_ROUTER_PREFIX}{key}": tensor.detach().contiguous().cpu()
                for key, tensor in (self.router.state_dict() if isinstance(self.router, ScoringRouter) else {}).items()
            }
            super().save_pretrained(save_directory, state_dict=weights, **kwargs)
        finally:
            self.config.base_model = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load what `save_pretrained` wrote; see transformers.

        Raises:
            ModelError: The dense model that it refers to is another one now, or weights are not finite.
        """
        config = kwargs.get("config")
        if config is None:
            config = FTPConfig.from_pretrained(
                pretrained_model_name_or_path,
                **{key: kwargs[key] for key in ("revision", "cache_dir", "subfolder", "token") if key in kwargs},
            )
        if config.base_model is None:
            kwargs.setdefault("use_safetensors", True)
            loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
            model = loaded[0] if isinstance(loaded, tuple) else loaded
            check_finite(model)
            return loaded
        kwargs.pop("config", None)
        where = {key: kwargs[key] for key in ("revision", "cache_dir", "subfolder", "token") if key in kwargs}
        router = build_router(config.router or describe_router(StaticRouter()))
        if isinstance(router, ScoringRouter):
            _load_router(router, Path(str(cached_file(pretrained_model_name_or_path, _WEIGHTS, **where))))
        base_kwargs = {key: value for key, value in kwargs.items() if key not in ("revision", "subfolder")}
        base = AutoModelForCausalLM.from_pretrained(config.base_model, **{"use_safetensors": True, **base_kwargs})
        found = model_identity(base)
        if config.base_identity is not None and found != config.base_identity:
            raise ModelError(
                f"The dense model at {config.base_model!r} (identity {found}) is not the one that was pruned "
                f"({config.base_identity}): restore it, or distil again."
            )
        assert config.schedule is not None
        pruned = cls.from_dense(base, config.schedule, router, decode_sparsity=config.decode_sparsity)
        pruned.eval()  # type: ignore[no-untyped-call]
        return pruned


def _load_router(router: ScoringRouter, weights: Path) -> None:
    with safe_open(weights, "pt") as file:
        state = {
            name.removeprefix(_ROUTER_PREFIX): file.get_tensor(name)
            for name in file.keys()  # noqa: SIM118 - safe_open is no mapping
            if name.startswith(_ROUTER_PREFIX)
        }
    router.load_state_dict(state)


def _logits(outputs: CausalLMOutputWithPast) -> Tensor:
    assert outputs.logits is not None
    return outputs.logits


def _real(attention_mask: Tensor | None, n_rows: int, width: int, device: torch.device) -> Tensor:
    """Which of the new columns hold tokens, bool `[B, L]`."""
    if attention_mask is None:
        return torch.ones(n_rows, width, dtype=torch.bool, device=device)
    if attention_mask.ndim != 2:
        raise DataError(
            f"attention_mask has {attention_mask.ndim} dimensions; skipping needs the plain one, 1 for tokens and 0 "
            "for padding (batch x length)."
        )
    return attention_mask[:, attention_mask.shape[1] - width :].to(device).bool()


def _prompt(real: Tensor, labels: Tensor | None, prompt_length: int | Tensor | None) -> Tensor:
    """Which columns are tokens of the prompt, bool `[B, L]`; at least the first token of each row is."""
    width = real.shape[1]
    columns = torch.arange(width, device=real.device)
    if prompt_length is not None:
        ends = torch.as_tensor(prompt_length, device=real.device).reshape(-1, 1)
    elif labels is not None:
        labelled = labels.to(real.device) != -100
        first = labelled.to(torch.uint8).argmax(1)
        ends = torch.where(labelled.any(1), first, width)[:, None]
    else:
        return real
    first_token = real.to(torch.uint8).argmax(1)[:, None]
    return real & ((columns < ends) | (columns == first_token))


def _columns(arguments: dict[str, Any], start: int, stop: int, before: int) -> dict[str, Any]:
    """The arguments of a forward pass for some of its columns; masks keep everything up to them.

    Args:
        arguments: Of the pass.
        start: First column.
        stop: Column behind the last one.
        before: Columns that the cache had seen before the pass, which the mask spans.
    """
    cut = {
        name: arguments[name][:, start:stop] for name in ("input_ids", "inputs_embeds") if arguments[name] is not None
    }
    positions, mask = arguments["position_ids"], arguments["attention_mask"]
    if positions is not None:
        cut["position_ids"] = positions[:, start:stop]
    if mask is not None:
        cut["attention_mask"] = mask[:, : before + stop]
    return {**arguments, **cut}


AutoConfig.register(FTPConfig.model_type, FTPConfig)
AutoModelForCausalLM.register(FTPConfig, FTPForCausalLM)
