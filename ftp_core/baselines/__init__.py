"""Methods that searched schedules are compared with.

Names are loaded when they are first used, so that their list does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ftp_core.baselines.catalogue import baseline as baseline
    from ftp_core.baselines.catalogue import baseline_names as baseline_names
    from ftp_core.baselines.catalogue import register_baseline as register_baseline
    from ftp_core.baselines.protocol import Baseline as Baseline
    from ftp_core.baselines.protocol import Budget as Budget
    from ftp_core.baselines.protocol import Preparation as Preparation
    from ftp_core.baselines.protocol import PrunedModel as PrunedModel
    from ftp_core.baselines.protocol import Sparsity as Sparsity
    from ftp_core.baselines.protocol import flops_saved as flops_saved
    from ftp_core.baselines.pruned import ScheduledModel as ScheduledModel

_HOMES = {
    "Baseline": "protocol",
    "Budget": "protocol",
    "Preparation": "protocol",
    "PrunedModel": "protocol",
    "ScheduledModel": "pruned",
    "Sparsity": "protocol",
    "baseline": "catalogue",
    "baseline_names": "catalogue",
    "flops_saved": "protocol",
    "register_baseline": "catalogue",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"ftp_core.baselines.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
