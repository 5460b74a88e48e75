"""A model whose blocks skip tokens: routing, training, quality, cost.

Names are loaded when they are first used, so that reading a schedule does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ftp_core.loading.models import LoadedModel as LoadedModel
    from ftp_core.loading.models import load_model as load_model
    from ftp_core.model.causal_lm import FTPForCausalLM as FTPForCausalLM
    from ftp_core.model.configuration import FTPConfig as FTPConfig
    from ftp_core.quality.quality import Quality as Quality
    from ftp_core.quality.quality import QualitySet as QualitySet
    from ftp_core.routers import DynamicRouter as DynamicRouter
    from ftp_core.routers import HiddenRouter as HiddenRouter
    from ftp_core.routers import LocalRouter as LocalRouter
    from ftp_core.routers import OnePassRouter as OnePassRouter
    from ftp_core.routers import RandomRouter as RandomRouter
    from ftp_core.routers import RecurrentRouter as RecurrentRouter
    from ftp_core.routers import Router as Router
    from ftp_core.routers import StaticRouter as StaticRouter
    from ftp_core.routers import register_router as register_router
    from ftp_core.routers import router_from_bytes as router_from_bytes
    from ftp_core.routers import router_to_bytes as router_to_bytes
    from ftp_core.schedule import SparsitySchedule as SparsitySchedule
    from ftp_core.skipping.cache import FTPCache as FTPCache
    from ftp_core.skipping.families import Family as Family
    from ftp_core.skipping.families import register_family as register_family
    from ftp_core.skipping.families import supported_families as supported_families
    from ftp_core.skipping.fitted_keys import FittedKeys as FittedKeys
    from ftp_core.skipping.fitted_keys import give_fitted_keys as give_fitted_keys
    from ftp_core.skipping.kept_projections import give_kept_projections as give_kept_projections
    from ftp_core.skipping.skipping_model import SkippingModel as SkippingModel
    from ftp_core.skipping.substitutes import give_substitutes as give_substitutes
    from ftp_core.text.encoding import EncodedExample as EncodedExample
    from ftp_core.text.encoding import encode as encode
    from ftp_core.training.calibration import calibrate_thresholds as calibrate_thresholds
    from ftp_core.training.distillation import Distillation as Distillation
    from ftp_core.training.distillation import distill as distill
    from ftp_core.training.distillation_config import DistillationConfig as DistillationConfig
    from ftp_core.training.substitution import fit_substitutes as fit_substitutes

_HOMES = {
    "Distillation": "ftp_core.training.distillation",
    "DistillationConfig": "ftp_core.training.distillation_config",
    "DynamicRouter": "ftp_core.routers",
    "EncodedExample": "ftp_core.text.encoding",
    "FTPCache": "ftp_core.skipping.cache",
    "FTPConfig": "ftp_core.model.configuration",
    "FTPForCausalLM": "ftp_core.model.causal_lm",
    "Family": "ftp_core.skipping.families",
    "FittedKeys": "ftp_core.skipping.fitted_keys",
    "HiddenRouter": "ftp_core.routers",
    "LoadedModel": "ftp_core.loading.models",
    "LocalRouter": "ftp_core.routers",
    "OnePassRouter": "ftp_core.routers",
    "Quality": "ftp_core.quality.quality",
    "QualitySet": "ftp_core.quality.quality",
    "RandomRouter": "ftp_core.routers",
    "RecurrentRouter": "ftp_core.routers",
    "Router": "ftp_core.routers",
    "SkippingModel": "ftp_core.skipping.skipping_model",
    "SparsitySchedule": "ftp_core.schedule",
    "StaticRouter": "ftp_core.routers",
    "calibrate_thresholds": "ftp_core.training.calibration",
    "distill": "ftp_core.training.distillation",
    "encode": "ftp_core.text.encoding",
    "fit_substitutes": "ftp_core.training.substitution",
    "give_fitted_keys": "ftp_core.skipping.fitted_keys",
    "give_kept_projections": "ftp_core.skipping.kept_projections",
    "give_substitutes": "ftp_core.skipping.substitutes",
    "load_model": "ftp_core.loading.models",
    "register_family": "ftp_core.skipping.families",
    "register_router": "ftp_core.routers",
    "router_from_bytes": "ftp_core.routers",
    "router_to_bytes": "ftp_core.routers",
    "supported_families": "ftp_core.skipping.families",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
