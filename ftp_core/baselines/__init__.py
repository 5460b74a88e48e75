"""Methods that searched schedules are compared with."""

from ftp_core.baselines.catalogue import baseline, baseline_names, register_baseline
from ftp_core.baselines.protocol import Baseline, Budget, Preparation, PrunedModel, Sparsity, flops_saved
from ftp_core.baselines.pruned import ScheduledModel

__all__ = [
    "Baseline",
    "Budget",
    "Preparation",
    "PrunedModel",
    "ScheduledModel",
    "Sparsity",
    "baseline",
    "baseline_names",
    "flops_saved",
    "register_baseline",
]
