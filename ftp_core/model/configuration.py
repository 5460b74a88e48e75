"""Configuration of a pruned model: the dense model's own, with schedule and router."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.families import PRUNED_TYPE

# Code by which transformers, if it is allowed to run it, finds the classes.
_AUTO_MAP = {"AutoConfig": "modeling_ftp.FTPConfig", "AutoModelForCausalLM": "modeling_ftp.FTPForCausalLM"}


class FTPConfig(PreTrainedConfig):
    """Configuration of a pruned model.

    Args:
        base_config: Configuration of the dense model.
        base_model: Directory or Hub id of the dense model if its weights are not included.
        base_revision: Commit (or branch or tag) of the dense model on the Hub; None for the main branch.
        base_identity: Identity of the dense model (`ftp_core.loading.identity`), to notice another one under its name.
        schedule: One sparsity per block, or lists by name where halves of blocks skip apart
            (`SparsitySchedule.to_json`).
        router: Description of the router (`ftp_core.routers.describe_router`).
        decode_sparsity: Most that a block may skip of the decoded tokens; 0 prunes only the prompt.
        keep_first: Number of tokens at the beginning of every prompt that are protected.
        substitute_rank: Rank of the maps that stand in for halves of blocks that tokens skip; 0 for none.
        kept_projections: Which projections of keys and values tokens that skip attention have of their own, and the
            schedule that they are fitted to (`KeptProjections.described`); None for none.
    """

    model_type = PRUNED_TYPE
    sub_configs = {"base_config": AutoConfig}  # noqa: RUF012 - transformers' interface
    has_no_defaults_at_init = True

    def __init__(
        self,
        base_config: PreTrainedConfig | dict[str, Any] | None = None,
        base_model: str | None = None,
        base_revision: str | None = None,
        base_identity: str | None = None,
        schedule: Sequence[float] | Mapping[str, Sequence[float]] | None = None,
        router: dict[str, Any] | None = None,
        decode_sparsity: float = 0.0,
        keep_first: int = 0,
        substitute_rank: int = 0,
        kept_projections: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(base_config, dict):
            base_config = AutoConfig.for_model(**base_config)
        self.base_config = base_config
        self.base_model = base_model
        self.base_revision = base_revision
        self.base_identity = base_identity
        self.schedule = None if schedule is None else SparsitySchedule.from_json(schedule).to_json()
        self.router = router
        self.decode_sparsity = decode_sparsity
        self.keep_first = keep_first
        self.substitute_rank = substitute_rank
        self.kept_projections = kept_projections
        if base_config is not None:
            for name in ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings"):
                kwargs.setdefault(name, getattr(base_config, name, None))
            # transformers writes this configuration's kernel into the dense model's.
            if kwargs.get("attn_implementation") is None:
                kwargs["attn_implementation"] = base_config._attn_implementation
        kwargs.setdefault("auto_map", dict(_AUTO_MAP))
        experts = None if base_config is None else base_config._experts_implementation
        super().__init__(**kwargs)
        # transformers has just written this configuration's way to run experts into the dense model's, too: None, with
        # which they run one by one.
        if base_config is not None and kwargs.get("experts_implementation") is None:
            base_config._experts_implementation = experts

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoConfig") -> None:
        """Does nothing: transformers would save a copy of this module with the model."""

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """See transformers; a `base_model` that takes the place of the saved one has no part in its revision."""
        if kwargs.get("base_model") is not None:
            kwargs.setdefault("base_revision", None)
        return super().from_dict(config_dict, **kwargs)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """The dense model's configuration, which knows widths and counts."""
        return self if self.base_config is None else self.base_config

    def __getattr__(self, name: str) -> Any:
        """Reads widths and counts from the dense model's configuration."""
        base = self.__dict__.get("base_config")
        if base is None or name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        try:
            return getattr(base, name)
        except RuntimeError as error:  # transformers gives no one value where blocks differ in it
            raise AttributeError(str(error)) from error


AutoConfig.register(FTPConfig.model_type, FTPConfig)
