"""What a schedule means: skipping tokens, routing them, training the router, quality and cost.

Names are loaded when they are first used, so that reading a schedule does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ftp_core.cache import FTPCache
    from ftp_core.calibration import calibrate_thresholds
    from ftp_core.causal_lm import FTPForCausalLM
    from ftp_core.configuration import FTPConfig
    from ftp_core.distillation import Distillation, distill
    from ftp_core.distillation_config import DistillationConfig
    from ftp_core.encoding import EncodedExample, encode
    from ftp_core.families import Family, register_family, supported_families
    from ftp_core.models import LoadedModel, load_model
    from ftp_core.quality import Quality, QualitySet
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
    from ftp_core.skipping_model import SkippingModel

_HOMES = {
    "Distillation": "distillation",
    "DistillationConfig": "distillation_config",
    "DynamicRouter": "routers",
    "EncodedExample": "encoding",
    "FTPCache": "cache",
    "FTPConfig": "configuration",
    "FTPForCausalLM": "causal_lm",
    "Family": "families",
    "HiddenRouter": "routers",
    "LoadedModel": "models",
    "LocalRouter": "routers",
    "Quality": "quality",
    "QualitySet": "quality",
    "RandomRouter": "routers",
    "RecurrentRouter": "routers",
    "Router": "routers",
    "SkippingModel": "skipping_model",
    "SparsitySchedule": "schedule",
    "StaticRouter": "routers",
    "calibrate_thresholds": "calibration",
    "distill": "distillation",
    "encode": "encoding",
    "load_model": "models",
    "register_family": "families",
    "register_router": "routers",
    "router_from_bytes": "routers",
    "router_to_bytes": "routers",
    "supported_families": "families",
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
