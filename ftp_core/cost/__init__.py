"""Latency, FLOPs and memory, predicted and measured."""

from ftp_core.cost.conditions import Conditions, ProfileError, profile_conditions
from ftp_core.cost.flops import Flops, FlopsCounter
from ftp_core.cost.measure import Skipping, Timing, Unchanged, Variant, measure, time_generation
from ftp_core.cost.memory import AllocationTracker, kv_bytes, peak_activation_bytes
from ftp_core.cost.profile import LatencyProfile
from ftp_core.cost.profiling import profile_latency
from ftp_core.cost.shape_profile import ShapeProfile
from ftp_core.cost.speedup import Speedup, paired_speedup
from ftp_core.cost.timing import Estimate, Latency, measure_latency, timing_batch

__all__ = [
    "AllocationTracker",
    "Conditions",
    "Estimate",
    "Flops",
    "FlopsCounter",
    "Latency",
    "LatencyProfile",
    "ProfileError",
    "ShapeProfile",
    "Skipping",
    "Speedup",
    "Timing",
    "Unchanged",
    "Variant",
    "kv_bytes",
    "measure",
    "measure_latency",
    "paired_speedup",
    "peak_activation_bytes",
    "profile_conditions",
    "profile_latency",
    "time_generation",
    "timing_batch",
]
