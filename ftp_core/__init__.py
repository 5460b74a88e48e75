"""A model whose blocks skip tokens: routing, training, quality, cost.

Names are loaded when they are first used, so that reading a schedule does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ftp_core.loading.models import LoadedModel, load_model
    from ftp_core.model.causal_lm import FTPForCausalLM
    from ftp_core.model.configuration import FTPConfig
    from ftp_core.quality.quality import Quality, QualitySet
    from ftp_core.routers import (
        DynamicRouter,
        HiddenRouter,
        LocalRouter,
        RandomRouter,
        RecurrentRouter,
        Router,
        StaticRouter,
        register_router,
        router_from_bytes,
        router_to_bytes,
    )
    from ftp_core.schedule import SparsitySchedule
    from ftp_core.skipping.cache import FTPCache
    from ftp_core.skipping.families import Family, register_family, supported_families
    from ftp_core.skipping.skipping_model import SkippingModel
    from ftp_core.text.encoding import EncodedExample, encode
    from ftp_core.training.calibration import calibrate_thresholds
    from ftp_core.training.distillation import Distillation, distill
    from ftp_core.training.distillation_config import DistillationConfig

_HOMES = {
    "Distillation": "training.distillation",
    "DistillationConfig": "training.distillation_config",
    "DynamicRouter": "routers",
    "EncodedExample": "text.encoding",
    "FTPCache": "skipping.cache",
    "FTPConfig": "model.configuration",
    "FTPForCausalLM": "model.causal_lm",
    "Family": "skipping.families",
    "HiddenRouter": "routers",
    "LoadedModel": "loading.models",
    "LocalRouter": "routers",
    "Quality": "quality.quality",
    "QualitySet": "quality.quality",
    "RandomRouter": "routers",
    "RecurrentRouter": "routers",
    "Router": "routers",
    "SkippingModel": "skipping.skipping_model",
    "SparsitySchedule": "schedule",
    "StaticRouter": "routers",
    "calibrate_thresholds": "training.calibration",
    "distill": "training.distillation",
    "encode": "text.encoding",
    "load_model": "loading.models",
    "register_family": "skipping.families",
    "register_router": "routers",
    "router_from_bytes": "routers",
    "router_to_bytes": "routers",
    "supported_families": "skipping.families",
}

__all__ = [
    "Distillation",
    "DistillationConfig",
    "DynamicRouter",
    "EncodedExample",
    "FTPCache",
    "FTPConfig",
    "FTPForCausalLM",
    "Family",
    "HiddenRouter",
    "LoadedModel",
    "LocalRouter",
    "Quality",
    "QualitySet",
    "RandomRouter",
    "RecurrentRouter",
    "Router",
    "SkippingModel",
    "SparsitySchedule",
    "StaticRouter",
    "calibrate_thresholds",
    "distill",
    "encode",
    "load_model",
    "register_family",
    "register_router",
    "router_from_bytes",
    "router_to_bytes",
    "supported_families",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"ftp_core.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
