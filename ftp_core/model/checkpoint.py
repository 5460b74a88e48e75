"""The files of a pruned model whose dense model lies elsewhere, and the checks of whatever was loaded."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_utils import _add_variant
from transformers.utils.hub import cached_file

from ftp_core.checks import check_finite
from ftp_core.errors import CoreError, ModelError, ScheduleError
from ftp_core.loading.identity import is_comparable, model_identity, same_model
from ftp_core.loading.reference import ModelReference
from ftp_core.model.configuration import FTPConfig
from ftp_core.routers import Router, ScoringRouter, StaticRouter, build_router, check_router_finite, describe_router
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.families import family_of
from ftp_core.skipping.kept_projections import KeptProjections
from ftp_core.skipping.substitutes import Substitutes

_WEIGHTS = "model.safetensors"
_PREFIX = "router."
# Arguments of `from_pretrained` by which files are found.
_LOCATION = ("revision", "cache_dir", "subfolder", "token", "local_files_only", "force_download", "proxies")
# The module of lm-eval's class for models of transformers.
_HARNESS = "lm_eval.models.huggingface"
_OURS = ("schedule", "decode_sparsity", "keep_first", "base_model", "base_revision")


def location(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Selects the arguments of `from_pretrained` by which files are found."""
    return {name: kwargs[name] for name in _LOCATION if name in kwargs}


@contextmanager
def loading(what: str, advice: str) -> Iterator[None]:
    """Context in which whatever a missing, damaged or foreign file raises becomes a `ModelError`."""
    try:
        yield
    except (CoreError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        # Every type of model checks its configuration in its own way, with exceptions of its own.
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"{what} cannot be loaded ({reason}): {advice}.") from error


def read_config(source: str | os.PathLike[str], kwargs: dict[str, Any]) -> FTPConfig:
    """Reads the configuration of a saved model, with the user's settings in the place of those saved.

    Args:
        source: Directory or Hub id.
        kwargs: Arguments of `from_pretrained`; those used up here are taken out.

    Raises:
        ModelError: There is none, it is another kind of model's, or a part of it is missing or invalid.
        ScheduleError: Its schedule, or the user's, is invalid.
    """
    config = kwargs.pop("config", None)
    if config is None:
        with loading(f"A pruned model at {str(source)!r}", "expected what FTPForCausalLM.save_pretrained wrote"):
            values = _config_values(source, kwargs)
        if values["model_type"] != FTPConfig.model_type:
            raise ModelError(
                f"{source!s} holds a {values['model_type']!r} model, not a pruned one: load it with "
                "AutoModelForCausalLM and prune it with FTPForCausalLM.from_dense."
            )
        _check_parts(values, source)
        with loading(f"The configuration of {source!s}", "restore its config.json, or save the model again"):
            config = FTPConfig.from_pretrained(source, **location(kwargs))
    elif not isinstance(config, FTPConfig):
        raise ModelError(
            f"config is a {type(config).__name__}, but must be an FTPConfig: leave it out, and it is read."
        )
    if kwargs.get("base_model") is not None:
        # The saved one is of another model, or of none that is on the Hub.
        config.base_revision = None
    for name in _OURS:
        value = kwargs.pop(name, None)
        if value is not None:
            setattr(config, name, SparsitySchedule.from_json(value).to_json() if name == "schedule" else value)
    _check_parts(vars(config), source)
    return config


def _config_values(source: str | os.PathLike[str], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Reads the config.json of any model; transformers takes one that is missing for an empty one."""
    if Path(source).is_absolute() and not Path(source).is_dir():
        raise FileNotFoundError(f"there is no directory {source!s}")
    values: dict[str, Any] = FTPConfig.get_config_dict(source, **location(kwargs))[0]
    if not values.get("model_type"):
        if (Path(source) / "adapter_config.json").is_file():
            raise FileNotFoundError(f"{source!s} holds adapters alone: load the pruned model, then load_adapter of it")
        raise FileNotFoundError(f"{source!s} has no config.json that says what model it is")
    return values


def _check_parts(values: dict[str, Any], source: str | os.PathLike[str]) -> None:
    """Checks a configuration before anything is made of it."""
    restore = "restore its config.json, or save the model again"
    try:
        SparsitySchedule.from_json(values.get("schedule"))
    except ScheduleError as error:
        raise ScheduleError(f"The configuration of {source!s} has no schedule that fits: {error}") from None
    router, base = values.get("router"), values.get("base_config")
    if router is not None and not isinstance(router, dict):
        raise ModelError(f"The configuration of {source!s} has the router {router!r}, not a description: {restore}.")
    known = base.get("model_type") if isinstance(base, dict) else isinstance(base, PreTrainedConfig)
    if not known and not (base is None and values.get("base_model")):
        raise ModelError(f"The configuration of {source!s} does not say what its dense model is: {restore}.")


def read_router(config: FTPConfig, source: str | os.PathLike[str], kwargs: dict[str, Any]) -> Router:
    """Reads the router of a model that was saved without the dense model's weights.

    Raises:
        ModelError: Its file is missing or damaged, or holds another router.
    """
    router = build_router(config.router or describe_router(StaticRouter()))
    if not isinstance(router, ScoringRouter):
        return router
    try:
        router.load_state_dict(_weights_of(_PREFIX, source, kwargs))
    except Exception as error:  # missing, damaged and foreign files fail in as many ways
        raise ModelError(
            f"{source!s} has no weights of its {router.kind} router ({error}): save the model again, or distil the "
            "router again."
        ) from error
    return router


def read_substitutes(config: FTPConfig, source: str | os.PathLike[str], kwargs: dict[str, Any]) -> Substitutes | None:
    """Reads what stands in for skipped halves of a model that was saved without the dense model's weights.

    Raises:
        ModelError: Its file is missing or damaged, or holds others.
    """
    if not config.substitute_rank:
        return None
    with loading(f"The substitutes of {source!s}", "save the model again"):
        weights = _weights_of("substitutes.", source, kwargs)
        n_blocks = 1 + max(int(name.split(".")[1]) for name in weights)
        width = weights["blocks.0.mlp.bias"].shape[0]
        maps = Substitutes(n_blocks, width, config.substitute_rank, weights["blocks.0.mlp.bias"].dtype)
        maps.load_state_dict(weights)
    return maps


def projections_like(config: FTPConfig, base: PreTrainedModel) -> KeptProjections:
    """Projections of the shape of those that a configuration tells of, with the dense model's weights."""
    family = family_of(base.config)
    assert config.kept_projections is not None
    assert family.halves is not None
    attention = family.halves[0]
    attentions = {i: block.get_submodule(attention) for i, block in enumerate(family.blocks_of(base))}
    return KeptProjections.like(config.kept_projections, attentions)


def read_projections(
    config: FTPConfig, source: str | os.PathLike[str], kwargs: dict[str, Any], base: PreTrainedModel
) -> KeptProjections | None:
    """Reads projections of skipped tokens' keys of a model that was saved without the dense model's weights.

    Raises:
        ModelError: Their file is missing or damaged, or holds others.
    """
    if not config.kept_projections:
        return None
    with loading(f"The projections of {source!s}", "save the model again"):
        projections = projections_like(config, base)
        projections.load_state_dict(_weights_of("kept_projections.", source, kwargs))
    return projections


def _weights_of(prefix: str, source: str | os.PathLike[str], kwargs: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Reads the weights whose names begin with a prefix, by what follows it."""
    path = Path(str(cached_file(source, _add_variant(_WEIGHTS, kwargs.get("variant")), **location(kwargs))))
    with safe_open(path, "pt") as file:
        return {
            name.removeprefix(prefix): file.get_tensor(name)
            for name in file.keys()  # noqa: SIM118 - safe_open is no mapping
            if name.startswith(prefix)
        }


def read_base(
    config: FTPConfig, source: str | os.PathLike[str], kwargs: dict[str, Any]
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Loads the dense model that a saved model refers to, with transformers' report, which `kwargs` must ask for.

    Raises:
        ModelError: It is missing, cannot be read, or is another one than was pruned.
    """
    name = str(config.base_model)
    what = f"The dense model {str(ModelReference(name, config.base_revision))!r}, to which {source!s} refers,"
    advice = "bring it back, or say where it is with from_pretrained(..., base_model=...)"
    # Those are the pruned model's own.
    kwargs = {key: value for key, value in kwargs.items() if key not in ("revision", "subfolder", "variant")}
    if config.base_revision is not None:
        kwargs["revision"] = config.base_revision
    with loading(what, advice):
        if _config_values(name, kwargs)["model_type"] == FTPConfig.model_type:
            raise ModelError(f"{what} is a pruned model itself: {advice}.")
        # With its report it returns a pair, whatever it declares.
        parts: Any = AutoModelForCausalLM.from_pretrained(name, **kwargs)
    base, info = parts
    _check_complete(info, f"The dense model {name!r}")
    if is_comparable(base):
        _check_identity(base, config, name)
    return base, info


def check_loaded(
    model: PreTrainedModel, base: PreTrainedModel, router: Router, info: dict[str, Any], source: str
) -> None:
    """Checks a pruned model that transformers loaded with its dense model's weights, by its report `info`.

    Raises:
        ModelError: Weights are missing, not finite or another router's, or the dense model is not the one that was
            pruned.
    """
    unfit = [*info["missing_keys"], *info["unexpected_keys"], *(name for name, *_ in info["mismatched_keys"])]
    of_router = sorted(name for name in unfit if name.startswith(_PREFIX))
    if of_router:
        raise ModelError(
            f"{source} has no weights of its {router.kind} router, or other ones ({', '.join(of_router)}): save the "
            "model again, or distil the router again."
        )
    _check_complete(info, source)
    check_router_finite(router)
    # Quantised while it was loaded, or with adapters that lay beside it, it is not what the file holds.
    if is_comparable(model) and not getattr(model, "_hf_peft_config_loaded", False):
        assert isinstance(model.config, FTPConfig)
        _check_identity(base, model.config, source)


def _check_complete(info: dict[str, Any], source: str) -> None:
    """Raises `ModelError` if transformers had to make up weights."""
    for name, found, expected in sorted(info["mismatched_keys"], key=str):
        raise ModelError(
            f"{source}: weight {name} is of the shape {tuple(found)}, but its config.json asks for {tuple(expected)}: "
            "restore the files, or save the model again."
        )
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ModelError(
            f"{source}: {len(missing)} weights are missing, the first is {missing[0]}: restore the files, or save the "
            "model again."
        )


def _check_identity(base: PreTrainedModel, config: FTPConfig, source: str) -> None:
    """Raises `ModelError` if the dense model is not the one that was pruned."""
    found, dtype = model_identity(base), base.dtype
    assert isinstance(dtype, torch.dtype)
    if config.base_identity is not None and not same_model(found, config.base_identity, dtype):
        # The better reason, if it is one.
        check_finite(base)
        raise ModelError(
            f"The dense model at {source!r} (identity {found}) is not the one that was pruned "
            f"({config.base_identity}): restore it, or distil again."
        )


def check_caller() -> None:
    """Raises `ModelError` if lm-eval's own class loads the model, and not `ftp_core.harness`, which is derived from it.

    That class takes the choices that it scores for a part of the prompt.
    """
    if _HARNESS not in sys.modules:
        return
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        asking = frame.f_locals.get("self") if frame.f_globals.get("__name__") == _HARNESS else None
        if asking is not None:
            if type(asking).__module__ == _HARNESS:
                raise ModelError(
                    "lm-eval's model 'hf' takes what it scores for a part of the prompt, tokens of which skip: its "
                    "figures would be wrong. Give --model ftp (python -m ftp_core.harness; docs/lm-eval.md)."
                )
            return
        frame = frame.f_back
