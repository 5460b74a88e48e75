"""The files of a pruned model whose dense model lies elsewhere, and the checks of whatever was loaded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils.hub import cached_file

from ftp_core.configuration import FTPConfig
from ftp_core.errors import ModelError
from ftp_core.identity import model_identity, same_model
from ftp_core.routers import Router, ScoringRouter, StaticRouter, build_router, check_router_finite, describe_router

_WEIGHTS = "model.safetensors"
_PREFIX = "router."
# Of `from_pretrained`: where and how a file is looked for.
_LOCATION = ("revision", "cache_dir", "subfolder", "token", "local_files_only", "force_download", "proxies")
_OURS = ("schedule", "decode_sparsity")


def router_weights(router: Router) -> dict[str, Tensor]:
    """The weights of a router, named as in a pruned model's file."""
    if not isinstance(router, ScoringRouter):
        return {}
    return {f"{_PREFIX}{name}": tensor.detach().contiguous().cpu() for name, tensor in router.state_dict().items()}


def location(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Those of `from_pretrained`'s arguments that say where files are looked for."""
    return {name: kwargs[name] for name in _LOCATION if name in kwargs}


def read_config(source: str | os.PathLike[str], kwargs: dict[str, Any]) -> FTPConfig:
    """The configuration of a saved model, with a schedule or decode sparsity that the user wants instead.

    Args:
        source: Directory or Hub id.
        kwargs: Arguments of `from_pretrained`; what is used up here is taken out.

    Raises:
        ModelError: It is the configuration of another kind of model.
    """
    config = kwargs.pop("config", None)
    if config is None:
        values, _ = FTPConfig.get_config_dict(source, **location(kwargs))
        if values.get("model_type") != FTPConfig.model_type:
            raise ModelError(
                f"{source!s} holds a {values.get('model_type')!r} model, not a pruned one: load it with "
                "AutoModelForCausalLM and prune it with FTPForCausalLM.from_dense."
            )
        config = FTPConfig.from_pretrained(source, **location(kwargs))
    for name in _OURS:
        if name in kwargs:
            value = kwargs.pop(name)
            setattr(config, name, list(value) if name == "schedule" else value)
    assert isinstance(config, FTPConfig)
    return config


def read_router(config: FTPConfig, source: str | os.PathLike[str], kwargs: dict[str, Any]) -> Router:
    """The router of a model that was saved without the dense model's weights.

    Raises:
        ModelError: Its file is missing or damaged, or holds another router.
    """
    router = build_router(config.router or describe_router(StaticRouter()))
    if not isinstance(router, ScoringRouter):
        return router
    try:
        path = Path(str(cached_file(source, _WEIGHTS, **location(kwargs))))
        with safe_open(path, "pt") as file:
            weights = {
                name.removeprefix(_PREFIX): file.get_tensor(name)
                for name in file.keys()  # noqa: SIM118 - safe_open is no mapping
                if name.startswith(_PREFIX)
            }
        router.load_state_dict(weights)
    except Exception as error:  # missing, damaged and foreign files fail in as many ways
        raise ModelError(
            f"{source!s} has no weights of its {router.kind} router ({error}): save the model again, or distil the "
            "router again."
        ) from error
    return router


def check_loaded(base: PreTrainedModel, router: Router, config: FTPConfig, missing: set[str], source: str) -> None:
    """Check what transformers loaded of a pruned model.

    Args:
        base: Its dense model.
        router: Its router.
        config: Its configuration.
        missing: Weights that the file does not have.
        source: Where it was loaded from.

    Raises:
        ModelError: The router's weights are missing or not finite, or the dense model is not the one that was pruned.
    """
    absent = sorted(name for name in missing if name.startswith(_PREFIX))
    if absent:
        raise ModelError(
            f"{source} has no weights of its {router.kind} router ({', '.join(absent)}): save the model again, or "
            "distil the router again."
        )
    check_router_finite(router)
    check_identity(base, config, source)


def check_identity(base: PreTrainedModel, config: FTPConfig, source: str) -> None:
    """Raise `ModelError` if the dense model is not the one that was pruned."""
    found, dtype = model_identity(base), base.dtype
    assert isinstance(dtype, torch.dtype)
    if config.base_identity is not None and not same_model(found, config.base_identity, dtype):
        raise ModelError(
            f"The dense model at {source!r} (identity {found}) is not the one that was pruned "
            f"({config.base_identity}): restore it, or distil again."
        )
