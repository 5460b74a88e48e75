"""What a schedule means: skipping tokens, routing them, training the router, quality and cost.

Names are loaded when they are first used, so that reading a schedule does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ftp_core.distillation import DistillationConfig, distill
    from ftp_core.models import LoadedModel, load_model
    from ftp_core.quality import Quality, QualitySet
    from ftp_core.routing import DynamicRouter, Router, StaticRouter
    from ftp_core.schedule import SparsitySchedule
    from ftp_core.skipping import SkippingModel

__all__ = [
    "DistillationConfig",
    "DynamicRouter",
    "LoadedModel",
    "Quality",
    "QualitySet",
    "Router",
    "SkippingModel",
    "SparsitySchedule",
    "StaticRouter",
    "distill",
    "load_model",
]

_HOMES = {
    "DistillationConfig": "distillation",
    "DynamicRouter": "routing",
    "LoadedModel": "models",
    "Quality": "quality",
    "QualitySet": "quality",
    "Router": "routing",
    "SkippingModel": "skipping",
    "SparsitySchedule": "schedule",
    "StaticRouter": "routing",
    "distill": "distillation",
    "load_model": "models",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"ftp_core.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
