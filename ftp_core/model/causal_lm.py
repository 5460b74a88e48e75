"""A pruned model as a Hugging Face model: `generate`, `save_pretrained`, `from_pretrained`, pipelines."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, SupportsFloat

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from ftp_core.checks import check_finite, check_finite_weights, check_input, checked_keep_first, checked_router
from ftp_core.cost.break_even import BreakEven
from ftp_core.cost.profile import LatencyProfile
from ftp_core.errors import ModelError, ScheduleError
from ftp_core.loading.identity import is_comparable, model_identity, same_model
from ftp_core.model.checkpoint import (
    check_caller,
    check_loaded,
    loading,
    projections_like,
    read_base,
    read_config,
    read_projections,
    read_router,
    read_substitutes,
)
from ftp_core.model.compilation import compile_block
from ftp_core.model.configuration import FTPConfig
from ftp_core.model.fitting import check_decoding, fitting_schedule
from ftp_core.model.generation import PromptedGeneration
from ftp_core.model.model_card import write_card
from ftp_core.model.saving import check_directory, loadable_weights, reference, replacing
from ftp_core.routers import Router, ScoringRouter, StaticRouter, build_router, check_router_finite, describe_router
from ftp_core.schedule import MAX_SPARSITY, SparsitySchedule
from ftp_core.skipping.attention import kernel_name
from ftp_core.skipping.cache import FTPCache
from ftp_core.skipping.dispatch import device_of_inputs, execution_device
from ftp_core.skipping.families import family_of
from ftp_core.skipping.kept_projections import give_kept_projections, kept_projections_of
from ftp_core.skipping.packing import AUTO
from ftp_core.skipping.pruned_forward import PrunedForward
from ftp_core.skipping.substitutes import Substitutes, give_substitutes, substitutes_of

_LOG = logging.getLogger(__name__)
# Code by which transformers, if it is allowed to run it, finds this class.
_CODE = Path(__file__).with_name("modeling_ftp.py")


class FTPForCausalLM(PromptedGeneration, PreTrainedModel, GenerationMixin):
    """A dense model whose prompts skip tokens, with the interface of the dense one.

    Made by `from_dense` and `from_pretrained`. `model(input_ids, ...)` takes the whole input for the prompt, as
    `generate` does, unless `labels` or `prompt_length` say where the completion begins; a completion's tokens never
    influence the routing of the prompt. With a schedule of zeros it is the dense model, to the bit.

    Attributes:
        packing: See `ftp_core.SkippingModel`.
    """

    config_class = FTPConfig
    config: FTPConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = False
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules: Any = None
    # The first keeps quantisers away from it, too.
    _keep_in_fp32_modules: Any = ("router",)
    _keep_in_fp32_modules_strict: Any = ("router",)

    def __init__(self, config: FTPConfig, base: PreTrainedModel | None = None, router: Router | None = None) -> None:
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
        self.router: Router = router or build_router(config.router or describe_router(StaticRouter()))
        self._schedule = fitting_schedule(SparsitySchedule.from_json(config.schedule), self.base)
        self.decode_sparsity = config.decode_sparsity
        self.keep_first = config.keep_first
        # The dense model's are its own weights here, so that they are saved and moved with all others.
        self.substitutes = substitutes_of(self.base)
        if self.substitutes is None and config.substitute_rank:
            width, dtype = self.base.config.hidden_size, self.base.dtype
            self.substitutes = Substitutes(self.n_blocks, width, config.substitute_rank, dtype)
            give_substitutes(self.base, self.substitutes, self._family.blocks_of(self.base))
        self.kept_projections = kept_projections_of(self.base)
        if self.kept_projections is None and config.kept_projections:
            self.kept_projections = projections_like(config, self.base)
            give_kept_projections(self.base, self.kept_projections)
        self._break_even: BreakEven | None = None
        self.packing = AUTO
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
        keep_first: int = 0,
    ) -> FTPForCausalLM:
        """Prunes a dense model; its weights are shared, not copied.

        Args:
            model: Causal language model of a supported family; what stands in for what its tokens skip goes with it
                (`ftp_core.fit_substitutes`).
            schedule: One sparsity per block, each in [0, 0.95], or what `SparsitySchedule.of_halves` makes.
            router: Router that selects the kept tokens; the static router if None.
            decode_sparsity: Most that a block may skip of the decoded tokens; 0 prunes only the prompt.
            keep_first: Number of tokens at the beginning of every prompt, such as a chat's system turn, that are
                protected: whatever the router, blocks keep them before any other.

        Raises:
            ModelError: The family is not supported, or its blocks have other parts than the halves that the schedule
                tells apart; a weight is not finite; the router does not fit the model or was trained for another one;
                or decoded tokens cannot be routed.
            ScheduleError: The schedule does not have one sparsity per block, or it, `decode_sparsity` or `keep_first`
                has a value outside the range.
        """
        if not isinstance(model, PreTrainedModel) or isinstance(model, FTPForCausalLM):
            raise ModelError(
                f"A {type(model).__name__} is no dense model: give a transformers model (`.model` of a SkippingModel, "
                "`.base` of an FTPForCausalLM, what `merge_and_unload()` of a peft model gives)."
            )
        fitting = fitting_schedule(schedule, model)
        check_finite(model)
        router = StaticRouter() if router is None else checked_router(router)
        config = FTPConfig(
            base_config=model.config,
            base_identity=model_identity(model) if is_comparable(model) else None,
            schedule=fitting,
            router=describe_router(router),
            decode_sparsity=decode_sparsity,
            keep_first=checked_keep_first(keep_first),
            substitute_rank=0 if (maps := substitutes_of(model)) is None else maps.rank,
            kept_projections=None if (kept := kept_projections_of(model)) is None else kept.described(),
            dtype=model.dtype,
        )
        pruned = cls(config, model, router)
        pruned.set_router(router)
        pruned.train(model.training)
        return pruned

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return True  # the dense model says itself how its experts can run

    @property
    def schedule(self) -> SparsitySchedule:
        """The schedule; another one, or any sequence of floats, may be assigned without loading anything again."""
        return self._schedule

    @schedule.setter
    def schedule(self, values: Sequence[float]) -> None:
        schedule = fitting_schedule(values, self.base)
        check_decoding(self._decode_sparsity, schedule, self.router)
        if isinstance(self.router, ScoringRouter):
            self.router.check_schedule(schedule)
        self._schedule = schedule
        self.config.schedule = schedule.to_json()

    @property
    def latency_profile(self) -> LatencyProfile | None:
        """Latency measured for this model on this machine: blocks that would lose time by skipping then run whole.

        None, as after loading, skips whatever the schedule says. It holds for one machine and is not saved.
        """
        return None if self._break_even is None else self._break_even.profile

    @latency_profile.setter
    def latency_profile(self, profile: LatencyProfile | None) -> None:
        if profile is not None:
            profile.check(self.base)
            if doubts := profile.doubts():
                _LOG.warning("This latency profile is not to be relied on: %s. Measure again.", "; ".join(doubts))
        self._break_even = None if profile is None else BreakEven(profile)

    @property
    def decode_sparsity(self) -> float:
        """Most that a block may skip of the decoded tokens."""
        return self._decode_sparsity

    @decode_sparsity.setter
    def decode_sparsity(self, share: float) -> None:
        if not isinstance(share, SupportsFloat) or not 0.0 <= float(share) <= MAX_SPARSITY:
            raise ScheduleError(f"decode_sparsity is {share!r}, but must be a number in [0, {MAX_SPARSITY}].")
        check_decoding(float(share), self._schedule, self.router)
        self._decode_sparsity = self.config.decode_sparsity = float(share)

    @property
    def keep_first(self) -> int:
        """Number of tokens at the beginning of every prompt that are protected: blocks keep them before any other.

        Thresholds of a router meet the schedule with the number that they were calibrated with.
        """
        return self._keep_first

    @keep_first.setter
    def keep_first(self, n_tokens: int) -> None:
        self._keep_first = self.config.keep_first = checked_keep_first(n_tokens)

    @property
    def n_blocks(self) -> int:
        """N."""
        return len(self._family.blocks_of(self.base))

    @property
    def device(self) -> torch.device:
        """Device of inputs and logits, and of the router."""
        return execution_device(self) or device_of_inputs(self.base)

    def set_router(self, router: Router) -> None:
        """Replaces the router.

        Raises:
            ModelError: It was trained for another model or shape, calibrated for another schedule, has a weight that is
                not finite, or cannot route decoded tokens though they are to skip.
        """
        if isinstance(router, ScoringRouter) and router.trained_for is not None and is_comparable(self.base):
            found = model_identity(self.base)
            if not same_model(router.trained_for, found, self.dtype):
                raise ModelError(
                    f"The router was trained for another model (identity {router.trained_for}) than this one "
                    f"({found}): distil one for it."
                )
        self._take_router(router)

    def _take_router(self, router: Router) -> None:
        check_router_finite(checked_router(router))
        if isinstance(router, ScoringRouter):
            router.check_model(self.n_blocks, self.base.config.hidden_size)
            router.check_schedule(self._schedule)
            router = router.to(self.device).eval()
        check_decoding(self._decode_sparsity, self._schedule, router)
        self._modules.pop("router", None)
        self.__dict__.pop("router", None)
        self.router = router
        self.config.router = describe_router(router)

    def get_input_embeddings(self) -> Any:
        """See the dense model."""
        return self.base.get_input_embeddings()

    def set_input_embeddings(self, value: Any) -> None:
        """See the dense model."""
        self.base.set_input_embeddings(value)

    def get_output_embeddings(self) -> Any:
        """See the dense model."""
        return self.base.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: Any) -> None:
        """See the dense model."""
        self.base.set_output_embeddings(new_embeddings)

    def compile_blocks(self, **options: Any) -> None:
        """Compiles the blocks in place with options of `torch.compile`, for lengths that change unless `dynamic=False`.

        Copies (`copy.deepcopy`, pickle, what `save_pretrained` writes) are not compiled: call it again on them.
        """
        for block in self._family.blocks_of(self.base):
            compile_block(block, {"dynamic": True, **options})

    @can_return_tuple  # type: ignore[untyped-decorator]
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
        """Runs the dense model with prompts that skip tokens.

        Args:
            input_ids: `[B, L]`.
            attention_mask: 1 for tokens and 0 for padding, left or right `[B, seen + L]`.
            position_ids: `[B, L]`; derived as the dense model derives them if None.
            past_key_values: Cache of an earlier call; a new one is made if `use_cache`.
            inputs_embeds: Embeddings instead of `input_ids` `[B, L, D]`.
            labels: -100 where no token is to be predicted `[B, L]`. The completion begins at the first label that is
                not -100: labels for the whole input leave no prompt, so that nothing is skipped.
            use_cache: Whether to return keys and values for more tokens.
            logits_to_keep: See transformers.
            prompt_length: Number of columns that are the prompt, padding included: one for all rows, or one each `[B]`.
                Derived from `labels` if None; without labels everything is prompt.
            kwargs: Arguments of the dense model.

        Raises:
            DataError: A prompt is empty, longer than the context, or has an unknown token; the input has another shape,
                or a mask or a prompt's length does not fit it.
            ModelError: Skipping cannot use the cache, or prompts end at different columns where decoded tokens are
                routed and a cache is asked for.
        """
        check_input(input_ids, inputs_embeds, past_key_values, self.base.config.vocab_size)
        arguments = kwargs | {
            **{"input_ids": input_ids, "inputs_embeds": inputs_embeds, "attention_mask": attention_mask},
            **{"position_ids": position_ids, "past_key_values": past_key_values, "labels": labels},
            **{"use_cache": use_cache, "logits_to_keep": logits_to_keep},
        }
        schedule = self._schedule
        if self._break_even is not None:
            first = input_ids if input_ids is not None else inputs_embeds
            schedule = self._break_even.of_pass(schedule, first, past_key_values, self.router)
        pruned = PrunedForward(
            self.base, self._family, schedule, self.router, self._decode_sparsity, self._keep_first, self.packing
        )
        return pruned(arguments, prompt_length)

    def _cache_to_fill(self) -> FTPCache | None:
        return FTPCache(self._family.windows(self.base)) if any(self._schedule) else None

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | os.PathLike[str], *, include_base: bool = True, **kwargs: Any
    ) -> None:
        """Writes configuration, schedule, router and weights as safetensors, a model card, and code to find this class.

        Args:
            save_directory: Directory of the model; nothing there is touched before all files are written.
            include_base: Whether to write the dense model's weights; otherwise `from_pretrained` loads them by the name
                under which the dense model was loaded: its directory, or its id and commit on the Hub.
            kwargs: Arguments of transformers, such as `state_dict` and `push_to_hub`.

        Raises:
            ModelError: The model would not load again (adapters are not merged, weights are quantised, not finite, or
                do not fit the configuration); the dense model whose weights are left out has no name, or is not what
                that name stands for; or the directory is a file, or holds a model that is not pruned.
        """
        if kwargs.get("push_to_hub"):
            kwargs.setdefault("repo_id", Path(save_directory).name)
        if self._hf_peft_config_loaded or not kwargs.get("is_main_process", True):
            # Adapters of `add_adapter` alone, or nothing, as another process writes.
            with replacing(Path(save_directory)) as folder:
                super().save_pretrained(folder, **kwargs)
            return
        check_directory(Path(save_directory))
        weights = loadable_weights(self, self.base, kwargs.pop("state_dict", None))
        name, revision, kept = None, None, self.config.base_identity
        if include_base:
            of_base = {key.removeprefix("base."): one for key, one in weights.items() if key.startswith("base.")}
            identity: str | None = model_identity(self.base, weights=of_base)
        else:
            name, revision, identity = reference(self.base, kept)
            weights = {key: one.cpu() for key, one in weights.items() if not key.startswith("base.")}
            kwargs.pop("max_shard_size", None)
        check_finite_weights(weights.items())
        self.config.base_model, self.config.base_revision, self.config.base_identity = name, revision, identity
        try:
            with replacing(Path(save_directory)) as folder:
                super().save_pretrained(folder, state_dict=weights, **kwargs)
                shutil.copy(_CODE, folder)
                write_card(self.config, folder, Path(save_directory))
        finally:
            self.config.base_model, self.config.base_revision, self.config.base_identity = None, None, kept

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Loads what `save_pretrained` wrote; see transformers.

        `schedule`, `decode_sparsity` and `keep_first` replace what was saved; `base_model` names the dense model anew,
        and `base_revision` its revision on the Hub (`revision` is that of the pruned model).

        Raises:
            ModelError: There is no pruned model, or its dense one is missing or another one than was pruned; weights
                are missing, not finite, or cannot be read; the router does not fit; or lm-eval's own class calls.
            ScheduleError: The schedule does not fit the model.
        """
        check_caller()
        source = pretrained_model_name_or_path
        config, wants_info = read_config(source, kwargs), kwargs.pop("output_loading_info", False)
        if kwargs.get("dtype", "auto") == "auto" and kwargs.get("torch_dtype") is None and config.dtype is not None:
            kwargs["dtype"] = config.dtype
        # Weights that do not fit are reported, so that the error can name them.
        kwargs = {"use_safetensors": True, **kwargs, "output_loading_info": True, "ignore_mismatched_sizes": True}
        loaded: Any
        if config.base_model is None:
            with loading(f"The weights of {source!s}", "restore its files, or save the model again"):
                # With its report it returns a pair, whatever it declares.
                parts: Any = super().from_pretrained(source, *args, config=config, **kwargs)
            loaded, info = parts
            check_loaded(loaded, loaded.base, loaded.router, info, str(source))
            check_finite(loaded)
            # It was saved with these weights, whatever they were before a training that it was distilled for.
            loaded._take_router(loaded.router)
        else:
            router = read_router(config, source, kwargs)
            maps = read_substitutes(config, source, kwargs)
            base, info = read_base(config, source, kwargs)
            give_kept_projections(base, read_projections(config, source, kwargs, base))
            if maps is not None:
                give_substitutes(base, maps.to(base.dtype), family_of(base.config).blocks_of(base))
            schedule = SparsitySchedule.from_json(config.schedule)
            loaded = cls.from_dense(
                base, schedule, router, decode_sparsity=config.decode_sparsity, keep_first=config.keep_first
            )
            loaded.eval()
        return (loaded, info) if wants_info else loaded


AutoModelForCausalLM.register(FTPConfig, FTPForCausalLM)
